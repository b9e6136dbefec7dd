"""A search for the most accurate detector within a latency, over one family of plain networks."""

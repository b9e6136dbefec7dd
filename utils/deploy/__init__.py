"""Exported files: their formats, how they are written and run, and what may stand around the network."""

"""Data sets and pictures: what a YAML describes, what lies on the disk, and what training reads of it."""

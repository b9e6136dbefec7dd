"""Blocks that train with several branches and deploy as one, and the algebra that turns the one into the other."""

from models.blocks import frozen  # noqa: F401 - it registers how norms fuse

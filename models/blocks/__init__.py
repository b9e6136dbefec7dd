"""Blocks that train with several branches and deploy as one, and the algebra that turns the one into the other."""

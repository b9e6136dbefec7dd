"""What each operator of a deploy graph costs on a machine, and what a whole network costs by that."""

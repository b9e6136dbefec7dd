"""What a data set holds, and what in it looks wrong, before anything is trained on it."""

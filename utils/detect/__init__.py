"""Detection: sources of pictures, predictors, the loop around them, and the files that it writes."""

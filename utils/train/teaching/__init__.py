"""Teachers: networks whose feature maps, outputs or modules a training learns from, beside the labels."""

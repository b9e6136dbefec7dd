"""INT8 files: calibration, quantization, and the search for the layers that stay in float."""

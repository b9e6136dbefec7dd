"""Training: ultralytics' loop around our model, AutoAnchor, transfer of weights, quantization-aware training."""

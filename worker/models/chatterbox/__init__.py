"""Chatterbox on PyTorch: our own pipeline around the published classes. No other place in the project loads torch."""

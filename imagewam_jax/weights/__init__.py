"""Weights from and to PyTorch: convert, export, and what the files beside them say."""

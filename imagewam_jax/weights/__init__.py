"""Weights from and to PyTorch: convert foreign weights to a checkpoint, and export one."""

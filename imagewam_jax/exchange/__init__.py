"""Weights from and to PyTorch users: convert, export, and prove that both agree."""

"""Comparing a checkpoint with recorded tensors of the official code, and recording such tensors."""

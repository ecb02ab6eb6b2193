"""Compares a checkpoint with recorded tensors of the official code, and records such tensors."""

"""Reads and writes files of tensors (safetensors and PyTorch) one tensor at a time."""

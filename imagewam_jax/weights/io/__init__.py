"""Files of tensors, safetensors and PyTorch, read and written piece by piece."""

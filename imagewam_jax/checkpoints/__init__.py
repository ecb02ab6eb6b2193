"""Checkpoints of a run: save, restore, verify, and start another run from them."""

"""From a config and an RLDS dataset to checkpoints."""

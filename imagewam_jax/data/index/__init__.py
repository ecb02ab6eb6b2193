"""RLDS on disk: TFDS folders, TFRecord files, and an index of their frames and columns."""

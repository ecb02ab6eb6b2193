"""From an index to batches on the host: where samples start, their frames, their order."""

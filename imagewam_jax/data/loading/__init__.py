"""From an index to batches on the host: start frames, decoding, samples, and their order."""

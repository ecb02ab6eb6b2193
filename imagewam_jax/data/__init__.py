"""From RLDS demonstrations on disk to batches in host memory, without TensorFlow.

`index` makes the shards of a TFDS folder random-access, `transforms` standardize their episodes as
the dataset specs of `registry` say, `loading` reads samples, `statistics` measures what
normalization needs, and `datasets` opens all of it for a config.
"""

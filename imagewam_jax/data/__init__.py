"""RLDS demonstrations on disk to batches on the accelerator, without TensorFlow.

`index_builder` makes a sidecar index of a TFDS folder, `index` opens it, `loader` iterates over it,
`device` and `normalization` are what runs inside jit, `statistics` and `text` are computed once.
"""

"""Kinds of recorded tensors: how each is repeated, and how a folder of them is read.

A kind is told by the tensors of its files. A new one is a file here and a line below.
"""

from imagewam_jax.parity.cases import (
    acting,
    autoencoder,
    first_expert,
    frames,
    gradients,
    images,
    imagining,
    layers,
    packing,
    rotation,
    text_encoder,
    training,
    transformer,
    weights,
)

# In the order in which they are recorded: what one has computed can be the input of another.
KINDS = (
    frames.KIND,
    training.KIND,
    layers.KIND,
    gradients.KIND,
    acting.KIND,
    imagining.KIND,
    images.KIND,
    packing.KIND,
    transformer.KIND,
    rotation.KIND,
    autoencoder.KIND,
    text_encoder.KIND,
    first_expert.KIND,
    weights.KIND,
)

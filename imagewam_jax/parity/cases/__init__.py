"""Kinds of recorded tensors: how each is repeated, and how a folder of them is read.

A kind is told by the tensors of its files. A new one is a file here, or a `Kind` in the file of its
subject, and a line below.
"""

from imagewam_jax.parity.cases import (
    acting,
    alone,
    autoencoder,
    layers,
    omnigen2,
    ovis_u1,
    packing,
    text_encoder,
    training,
    transformer,
    weights,
)

# In the order in which they are recorded: the outputs of one can be inputs of another.
KINDS = (
    autoencoder.FRAMES,
    training.STEP,
    alone.MOMENTS,
    layers.LAYERS,
    omnigen2.LAYERS,
    ovis_u1.LAYERS,
    ovis_u1.REFINER,
    alone.NATIVE,
    training.GRADIENTS,
    acting.ACTING,
    acting.IMAGINING,
    autoencoder.IMAGES,
    packing.PACKING,
    transformer.TRANSFORMER,
    transformer.ROTATION,
    autoencoder.AUTOENCODER,
    text_encoder.TEXT_ENCODER,
    weights.FIRST_EXPERT,
    weights.WEIGHTS,
)

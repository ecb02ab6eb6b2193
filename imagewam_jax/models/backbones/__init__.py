"""Image-editing transformers by name. A new one is a file here and a line below."""

from imagewam_jax.models.backbones.flux2 import Flux2, Flux2Config

# name in the config -> (its configuration, its module)
BACKBONES = {"flux2": (Flux2Config, Flux2)}

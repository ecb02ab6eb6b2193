"""Image-editing transformers by name. A new one is a file here and a line below."""

from flax import nnx

from imagewam_jax.models.backbones.base import Backbone, BackboneConfig
from imagewam_jax.models.backbones.flux2 import Flux2, Flux2Config
from imagewam_jax.models.backbones.omnigen2 import OmniGen2, OmniGen2Config
from imagewam_jax.models.backbones.ovis_u1 import OvisU1, OvisU1Config

# name in the config -> (its configuration, its module)
BACKBONES = {
    "flux2": (Flux2Config, Flux2),
    "omnigen2": (OmniGen2Config, OmniGen2),
    "ovis_u1": (OvisU1Config, OvisU1),
}


def make_backbone(config: BackboneConfig, *, rngs: nnx.Rngs) -> Backbone:
    """The registered backbone that has a configuration of this type."""
    module = next(module for kind, module in BACKBONES.values() if isinstance(config, kind))
    return module(config, rngs=rngs)

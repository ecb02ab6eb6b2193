"""Every parameter says what its axes are, which sharding rests on."""

import jax
import pytest
from flax import nnx

from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B
from imagewam_jax.models.backbones.omnigen2 import OMNIGEN2
from imagewam_jax.models.backbones.ovis_u1 import OVIS_U1
from imagewam_jax.models.imagewam import ImageWAM, ImageWAMConfig

STACKED = (
    "double_layers",
    "single_layers",
    "layers",
    "text_refiner",
    "reference_refiner",
    "target_refiner",
)


@pytest.mark.parametrize(("backbone", "count"), [(KLEIN_4B, 64), (OMNIGEN2, 101), (OVIS_U1, 165)])
def test_each_axis_of_each_parameter_has_a_name(backbone, count):
    config = ImageWAMConfig(backbone, ActionExpertConfig(), proprio_dim=8)
    policy = jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))
    parameters = [(path, v) for path, v in nnx.iter_graph(policy) if isinstance(v, nnx.Param)]
    assert len(parameters) == count
    for path, parameter in parameters:
        axes = parameter.get_metadata("axes")
        assert len(axes) == parameter.ndim, path
        assert (axes[0] == "layer") == any(name in path for name in STACKED), path
        assert len(set(axes)) == len(axes), path


def test_axis_names_have_one_size_each():
    """A name that stood for two sizes in one kind of layer could not be sharded by rule."""
    config = ImageWAMConfig(KLEIN_4B, ActionExpertConfig(), proprio_dim=8)
    policy = jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))
    for part in (policy.backbone, policy.expert):
        sizes: dict[str, set[int]] = {}
        for path, parameter in nnx.iter_graph(part):
            if isinstance(parameter, nnx.Param):
                for name, size in zip(parameter.get_metadata("axes"), parameter.shape, strict=True):
                    # Modulations are as long as their branches are many: multiples of one width.
                    group = path[0] if name in ("layer", "modulation") else ""
                    sizes.setdefault(f"{group}{name}", set()).add(size)
        assert {name: s for name, s in sizes.items() if len(s) > 1} == {}

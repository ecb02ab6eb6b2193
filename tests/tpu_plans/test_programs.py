"""What programs are found to hold before anything is compiled."""

from imagewam_jax.config.loading import load_config
from imagewam_jax.data.datasets import resolve_widths
from imagewam_jax.tpu_plans.arguments import default_inputs
from imagewam_jax.tpu_plans.programs import act_program
from tests.training.tiny import ROOT, one_device


def test_the_cache_of_acting():
    """Keys and values of every robot, layer, token (an image, text, the state) and channel."""
    for config, layers, tokens, width, size in (
        ("configs/quickstart.py", 2 + 4, 4 * 4 + 47 + 1, 128, 4),
        ("configs/libero.py:4b", 5 + 20, 14 * 28 + 47 + 1, 3072, 2),
    ):
        loaded = resolve_widths(load_config(str(ROOT / config), []).to_dict())
        program = act_program(loaded, default_inputs(loaded), one_device(), batch=3)
        assert program.cache == 2 * 3 * layers * tokens * width * size

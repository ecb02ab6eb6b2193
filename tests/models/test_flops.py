"""The count of useful FLOPs: sums written by hand, known figures and what XLA counts."""

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.models import flops
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B, KLEIN_9B, Flux2, Flux2Config
from imagewam_jax.models.flops import Sizes
from imagewam_jax.models.flow_matching import Schedule
from imagewam_jax.models.imagewam import Context, ImageWAMConfig
from imagewam_jax.models.parameters import abstract_params, policy_builder

TINY = ImageWAMConfig(
    Flux2Config(
        in_channels=8,
        text_dim=24,
        dim=16,
        heads=2,
        double_layers=2,
        single_layers=3,
        mlp_ratio=2.0,
        rope_axes=(2, 2, 2, 2),
    ),
    ActionExpertConfig(action_dim=5, dim=12, mlp_ratio=2.0, max_horizon=8),
    proprio_dim=3,
    horizon=4,
)
SIZES = Sizes(batch=2, text_tokens=6, target_grid=(2, 3), reference_grid=(2, 4), references=2)
# Rows of one sample: text with the robot state's, reference images, target, action.
TEXT, REFERENCE, TARGET, ACTION = 6 + 1, 2 * 8, 6, 4


def test_forward_by_hand():
    d, e, mlp, inner = 16, 12, 32, 16
    image, tokens = REFERENCE + TARGET, TEXT + REFERENCE + TARGET
    block, expert_block = 4 * d * inner + 3 * d * mlp, 4 * e * inner + 3 * e * 24
    projections = 4 * d * inner
    expected = {
        # Double layers have a block for images and one for text, single layers one for all.
        "projections": (2 + 3) * (tokens * projections + ACTION * 4 * e * inner),
        "mlp": (2 + 3) * (tokens * (block - projections) + ACTION * (expert_block - 4 * e * inner)),
        "attention": (2 + 3)
        * 2
        * inner
        * (
            (TEXT + REFERENCE) * (TEXT + REFERENCE)
            + TARGET * tokens
            + ACTION * (TEXT + REFERENCE + ACTION)
        ),
        # Two layers of the time's embedding; two heads of 2 x 3 vectors and one of 3; 2 at the end.
        "modulation": 256 * d
        + d * d
        + (6 + 6 + 3 + 2) * d * d
        # The expert has one head of 2 x 3 vectors.
        + 256 * e
        + e * e
        + (6 + 3 + 2) * e * e,
        "embeddings": image * 8 * d + TEXT * 24 * d + TARGET * d * 8 + 3 * 24 + ACTION * 2 * 5 * e,
    }
    found = flops.forward(TINY, SIZES)
    assert found.by_kind() == {kind: 2 * 2 * count for kind, count in expected.items()}
    assert sum(found.by_stream().values()) == found.total == 4 * sum(expected.values())


def test_every_matrix_counts_once():
    found = flops.kernels(TINY)
    vectors = ("scale", "bias")
    params = jax.tree_util.tree_leaves_with_path(abstract_params(TINY))
    matrices = [leaf for path, leaf in params if path[-1].key not in vectors]
    assert len(found) == len(matrices)
    assert sum(kernel.size for kernel in found) == sum(leaf.size for leaf in matrices)


def test_a_matrix_that_no_rows_are_known_of_is_an_error(monkeypatch):
    rows = {name: kinds for name, kinds in Flux2.ROWS.items() if name != "text_in"}
    monkeypatch.setattr(Flux2, "ROWS", rows)
    with pytest.raises(ValueError, match=r"backbone\.text_in\.kernel"):
        flops.kernels(TINY)


def test_training_is_three_passes_and_less_where_kernels_are_frozen():
    forward = flops.forward(TINY, SIZES)
    assert flops.training_step(TINY, SIZES).total == 3 * forward.total
    half = flops.training_step(TINY, SIZES, lambda path: path[0] != "backbone")
    of_backbone = sum(
        2 * kernel.size * 2 * {"text": TEXT, "reference": REFERENCE, "target": TARGET}.get(row, 1)
        for kernel in flops.kernels(TINY)
        if kernel.path[0] == "backbone"
        for row in kernel.rows
    )
    assert half.total == 3 * forward.total - of_backbone


def test_dense_is_one_attention_over_everything():
    rows = 9 + 1 + REFERENCE + TARGET + ACTION
    dense = flops.dense_training_step(TINY, SIZES, text_tokens=9).by_kind()
    assert dense["attention"] == 3 * 2 * 4 * 16 * 5 * rows**2
    same_text = flops.training_step(TINY, SIZES._replace(text_tokens=9)).by_kind()
    for kind in dense.keys() - {"attention"}:
        assert dense[kind] == same_text[kind]

    def is_trained(path):
        return path[0] != "backbone"

    dense = flops.dense_training_step(TINY, SIZES, is_trained, text_tokens=9).by_kind()
    same_text = flops.training_step(TINY, SIZES._replace(text_tokens=9), is_trained).by_kind()
    for kind in dense.keys() - {"attention"}:
        assert dense[kind] == same_text[kind]


@pytest.mark.parametrize(
    ("backbone", "text_tokens", "teraflops"),
    # FLOPs that others counted, rounded, for one chunk of actions on LIBERO's images, 10 steps.
    [(KLEIN_4B, 512, 6.07), (KLEIN_4B, 128, 3.5), (KLEIN_9B, 512, 13.5)],
)
def test_acting_on_libero(backbone, text_tokens, teraflops):
    config = ImageWAMConfig(backbone, ActionExpertConfig(), proprio_dim=8)
    sizes = Sizes(1, text_tokens, (14, 28), (14, 28))
    assert flops.acting(config, sizes).total == pytest.approx(teraflops * 1e12, rel=5e-3)


# Wide enough that products of matrices are nearly all that it computes.
WIDE = ImageWAMConfig(
    Flux2Config(
        in_channels=64,
        text_dim=256,
        dim=512,
        heads=4,
        double_layers=1,
        single_layers=2,
        rope_axes=(32, 32, 32, 32),
    ),
    ActionExpertConfig(action_dim=7, dim=256),
    proprio_dim=8,
    horizon=16,
    remat="none",
    unroll=2,  # XLA counts one iteration of a loop
)
WIDE_SIZES = Sizes(batch=2, text_tokens=31, target_grid=(4, 8), reference_grid=(4, 8))


def xla_flops(function, *arguments) -> float:
    return jax.jit(function).lower(*arguments).cost_analysis()["flops"]


def test_xla_counts_the_same():
    """The compiler counts elementwise work, too: a few percent more."""
    shape, batch = jax.ShapeDtypeStruct, WIDE_SIZES.batch
    params, rebuild = abstract_params(WIDE), policy_builder(WIDE)
    context = Context(
        shape((batch, 31, 256), jnp.float32),
        shape((batch,), jnp.int32),
        shape((batch, 1, 4, 8, 64), jnp.float32),
        shape((batch, 8), jnp.float32),
    )
    target, actions = (shape((batch, *s), jnp.float32) for s in ((4, 8, 64), (16, 7)))
    time = shape((batch,), jnp.float32)

    def forward(params, *inputs):
        return rebuild(params).velocities(*inputs)

    def prefill(params, context):
        return rebuild(params).prefill(context)

    def act(params, cache, noise, schedule):
        return rebuild(params).act(cache, noise, schedule)[0]

    cache = jax.eval_shape(prefill, params, context)
    one = Schedule(shape((1,), jnp.float32), shape((1,), jnp.float32))
    cases = [
        (1, flops.forward, xla_flops(forward, params, context, target, time, actions, time)),
        # jax 0.11 leaves out what the last layer makes besides keys and values: nobody reads it.
        (0.82, flops.prefill, xla_flops(prefill, params, context)),
        (
            1,
            lambda config, sizes: flops.euler_steps(config, sizes, 1),
            xla_flops(act, params, cache, actions, one),
        ),
    ]
    for least, count, counted in cases:
        assert least < counted / count(WIDE, WIDE_SIZES).total < 1.03

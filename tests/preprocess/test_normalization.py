"""Normalization against tensors recorded from the official code, on NumPy and inside jit."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.data.statistics.exact import exact_statistics
from imagewam_jax.errors import DataError
from imagewam_jax.preprocess import normalization as norm
from imagewam_jax.preprocess.statistics import read_statistics, select_statistics
from tests.goldens import golden

TOLERANCE = 2e-6
# z-score of a dimension with std 1e-5: the official form's own rounding reaches 2e-3.
NEARLY_CONSTANT_TOLERANCE = 1e-2
LAYOUTS = ("single", "multi")
VARIANTS = (
    "minmax",
    "q01q99",
    "zscore",
    "const",
    "minmax_stepwise",
    "zscore_stepwise",
    "q01q99_stepwise",
    "mixed",
)


@pytest.fixture(scope="module")
def recorded():
    return load_file(golden("normalization") / "normalized.safetensors")


@pytest.fixture(scope="module")
def layouts():
    return json.loads((golden("normalization") / "config.json").read_text())["layouts"]


def official(name):
    return read_statistics(golden("normalization") / f"stats_{name}.json")


def normalizers(statistics, default_mode, exception_mode=None, *, stepwise_actions=False):
    """{"action": {key: normalizer}, "state": ...} as a processor of the official code has them."""
    modes = exception_mode or {}
    return {
        field: {
            key: norm.make_normalizer(
                select_statistics(entry, stepwise_actions and field == "action"),
                modes.get(field, {}).get(key, default_mode),
            )
            for key, entry in statistics[field].items()
        }
        for field in ("action", "state")
    }


def tolerance(width, mode):
    """The tolerance of each dimension; dimension 3 of wide fields has a range below 1e-4."""
    limits = np.full(width, TOLERANCE)
    if mode == "z-score" and width >= 4:
        limits[3] = NEARLY_CONSTANT_TOLERANCE
    return limits


def assert_close(found, expected, mode, name):
    error = np.abs(np.asarray(found, np.float64) - expected)
    assert error.shape == expected.shape, name
    limit = tolerance(expected.shape[-1], mode)
    assert (error <= limit).all(), f"{name}: {error.max(axis=tuple(range(error.ndim - 1)))}"


def assert_relatively_close(found, expected, name):
    """Compares real units, which span many decades, up to three float32 roundings."""
    np.testing.assert_allclose(found, expected, rtol=4e-7, atol=TOLERANCE, err_msg=name)


@pytest.mark.parametrize("compiled", [False, True], ids=["numpy", "jit"])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_mode_matches_the_official_normaliser(recorded, layouts, layout, variant, compiled):
    config = layouts[layout]["variants"][variant]
    by_field = normalizers(
        official(layout),
        config["default_mode"],
        config["exception_mode"],
        stepwise_actions=config["use_stepwise_action_norm"],
    )
    run = jax.jit if compiled else lambda function: function
    compared = 0
    for field, by_key in by_field.items():
        for key, normalizer in by_key.items():
            exceptions = (config["exception_mode"] or {}).get(field, {})
            mode = exceptions.get(key, config["default_mode"])
            name = f"{layout}.{variant}.{field}.{key}"
            assert_relatively_close(normalizer.scale, recorded[f"{name}.scale"], name)
            assert_relatively_close(normalizer.offset, recorded[f"{name}.offset"], name)
            normalize = run(norm.Normalizer.normalize)
            denormalize = run(norm.Normalizer.denormalize)
            found = normalize(normalizer, recorded[f"{layout}.in.{field}.{key}"])
            assert_close(found, recorded[f"{name}.normalized"], mode, name)
            back = denormalize(normalizer, recorded[f"{name}.normalized"])
            assert_relatively_close(back, recorded[f"{name}.roundtrip"], name)
            inputs = recorded[f"{layout}.in_normalized.{field}.{key}"]
            back = denormalize(normalizer, inputs)
            assert_relatively_close(back, recorded[f"{name}.from_in_normalized"], name)
            compared += 1
    assert compared == {"single": 2, "multi": 4}[layout]


def test_missing_dimensions_become_zero(recorded):
    by_field = normalizers(official("single"), "min/max")
    for field in ("action", "state"):
        normalized = by_field[field]["default"].normalize(recorded[f"single.in.{field}.default"])
        found = norm.zero_missing_dims(normalized, recorded[f"single.masked.{field}_dim_is_pad"])
        name = f"single.masked.{field}.default.normalized"
        assert_close(found, recorded[name], "min/max", name)


@pytest.mark.parametrize("variant, mode", [("minmax", "min/max"), ("zscore", "z-score")])
def test_the_whole_processor(recorded, layouts, variant, mode):
    sizes = layouts["processor"]
    case = f"single.processor_{variant}"
    actions = recorded["single.in.action.default"].copy()
    # What samples hold beyond the end of an episode.
    actions[recorded[f"{case}.action_is_pad"][:, None] & sizes["delta_action_dim_mask"]] = 0
    assert (actions != recorded["single.in.action.default"]).any()
    for field, output, values in (
        ("action", "action", actions),
        ("state", "proprio", recorded["single.in.state.default"]),
    ):
        normalizer = normalizers(official("single"), mode)[field]["default"]
        width, target = values.shape[-1], sizes[f"{field}_target_dim"]
        normalizer = norm.stack_normalizers([normalizer], target).of(np.array([0]))
        is_pad = np.arange(target) >= width
        padded = np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, target - width)])
        found = norm.zero_missing_dims(normalizer.normalize(padded), is_pad)
        assert_close(found, recorded[f"{case}.{output}"], mode, output)
        np.testing.assert_array_equal(is_pad, recorded[f"{case}.{output}_dim_is_pad"])
        back = normalizer.denormalize(recorded[f"{case}.{output}"][None])[..., :width]
        name = f"{case}.postprocess.{field}.default"
        assert_relatively_close(back, recorded[name], name)


@pytest.mark.parametrize("variant, mode", [("minmax", "min/max"), ("zscore", "z-score")])
@pytest.mark.parametrize("embodiment", ["arm_a", "arm_b"])
def test_per_embodiment(recorded, layouts, embodiment, variant, mode):
    by_field = normalizers(official("per_embodiment")["embodiments"][embodiment], mode)
    episodes = layouts["per_embodiment"]["episodes"]
    masks = next(e for e in episodes if e["embodiment"] == embodiment)
    for field in ("action", "state"):
        name = f"single.per_embodiment_{variant}.{embodiment}.{field}"
        normalizer = by_field[field]["default"]
        normalized = normalizer.normalize(recorded[f"single.in.{field}.default"])
        found = norm.zero_missing_dims(normalized, np.array(masks[f"{field}_dim_is_pad"]))
        assert_close(found, recorded[f"{name}.normalized"], mode, name)
        if field == "action":  # states are never brought back
            back = normalizer.denormalize(recorded[f"{name}.normalized"])
            assert_relatively_close(back, recorded[f"{name}.roundtrip"], name)


def test_every_recorded_tensor_is_compared(recorded):
    """Fails if no test above reads some recorded tensor."""
    prefixes = [f"{layout}.{v}." for layout in LAYOUTS for v in VARIANTS]
    prefixes += [f"{layout}.{part}." for layout in LAYOUTS for part in ("in", "in_normalized")]
    prefixes += ["single.masked.", "single.processor_", "single.per_embodiment_"]
    assert [name for name in recorded if not name.startswith(tuple(prefixes))] == []


@pytest.mark.parametrize("mode", ["z-score", "min/max", "q01/q99"])
def test_a_constant_dimension_is_zero_inside_jit(mode):
    values = np.random.default_rng(0).uniform(0.1, 0.9, (1, 64)).astype(np.float32)
    normalizer = norm.make_normalizer(exact_statistics(np.repeat(values, 10, axis=0)), mode)
    found = jax.jit(norm.Normalizer.normalize)(normalizer, jnp.asarray(values))
    np.testing.assert_array_equal(found, np.zeros_like(values))
    back = normalizer.denormalize(np.zeros_like(values))
    np.testing.assert_array_equal(back, values)


def test_errors():
    statistics = exact_statistics(np.zeros((2, 1)))
    with pytest.raises(DataError, match="mode 'minmax'; expected z-score, min/max"):
        norm.make_normalizer(statistics, "minmax")
    with pytest.raises(DataError, match="lack global_min"):
        select_statistics(statistics, stepwise=False)

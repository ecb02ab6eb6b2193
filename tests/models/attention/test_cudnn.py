"""cuDNN's attention without a GPU: what it refuses, and what it asks of cuDNN."""

import re

import jax
import jax.numpy as jnp
import pytest

from imagewam_jax.models.attention import BACKENDS, check_backend, cudnn
from tests.models.attention.problems import make_problem, solve


def test_a_cpu_is_told_that_it_cannot():
    problem = make_problem(dtype="bfloat16")
    with pytest.raises(ValueError, match=r"'cudnn' runs on NVIDIA GPUs .* 'cpu'; choose 'xla'"):
        solve(BACKENDS["cudnn"], problem)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "message"),
    [
        (128, jnp.float32, "bfloat16 or float16 and its queries are float32"),
        (100, jnp.bfloat16, "multiple of 8 channels, up to 256, and these have 100"),
        (264, jnp.bfloat16, "and these have 264"),
    ],
)
def test_what_it_cannot_do(head_dim, dtype, message):
    with pytest.raises(ValueError, match=message):
        check_backend("cudnn", "gpu", head_dim, dtype)


def test_what_it_can_do():
    check_backend("cudnn", "gpu", 128, jnp.bfloat16)
    check_backend("splash", "tpu", 128, jnp.float32)
    check_backend("xla", "cpu", 7, jnp.float32)


def test_it_asks_for_padding_and_both_gradients(monkeypatch):
    """Lowered for CUDA, with odd token counts, two segments and lengths. JAX asks a GPU which
    version and capability it has; here a test answers."""
    stablehlo = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    monkeypatch.setattr(stablehlo, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(stablehlo, "check_compute_capability", lambda wanted: True)
    monkeypatch.setattr(cudnn, "target_platform", lambda: "gpu")
    q, segments, length_b, cotangent = make_problem(dtype="bfloat16", lengths=[80, 62])

    def gradient(q, segments, length_b):
        attended, pull = jax.vjp(lambda q, kv: BACKENDS["cudnn"](q, kv, length_b), q, segments)
        return attended, pull(cotangent)

    traced = jax.jit(gradient).trace(q, segments, length_b)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    calls = [line for line in text.splitlines() if "__cudnn$fmhaSoftmax" in line]
    assert ["Backward" in call.partition("(")[0] for call in calls] == [False, True]
    for call in calls:
        assert r"mask_type\22: \22PADDING" in call
        scale = re.search(r"fmha_scale\\22: ([\d.]+)", call).group(1)
        assert float(scale) == pytest.approx(128**-0.5)
        assert "tensor<2x38x2x128xbf16>, tensor<2x80x2x128xbf16>" in call

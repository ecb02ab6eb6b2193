"""Plans from configs: of a tiny policy in seconds, and of FLUX.2 klein 4B at its full size."""

import json

import jax
import pytest

from imagewam_jax import cli
from imagewam_jax.config.loading import load_config
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import ConfigError
from imagewam_jax.models.parameters import abstract_params
from imagewam_jax.tpu_plans.arguments import default_inputs
from imagewam_jax.tpu_plans.plan import make_plan
from imagewam_jax.tpu_plans.report import plan_from_json
from tests.tpu_compiler import needs_libtpu
from tests.training.tiny import ROOT

pytestmark = [
    pytest.mark.slow(minutes=5),
    pytest.mark.tpu_compile,
    needs_libtpu,
]
QUICKSTART = f"--config={ROOT / 'configs' / 'quickstart.py'}"
# A scan that computes layers again, as large models need it.
SCAN = ("--config.model.remat=save_matmuls", "--config.model.unroll=1")
# Compiles several times faster; the results are good enough for these tests.
FAST = "--config.train.compiler_options=('optimization_level=1',)"


def quickstart(*overrides: str) -> dict:
    return load_config(QUICKSTART.removeprefix("--config="), overrides).to_dict()


@pytest.fixture(scope="module")
def plan():
    config = quickstart(FAST, *SCAN, "--config.mesh.fsdp=4", "--config.train.batch_size=8")
    return make_plan(config, "v5e:2x2", default_inputs(config))


def test_memory_of_a_tiny_step(plan):
    """Four chips share parameters, moments and average; the policy assets are on each of them."""
    memory, compiled = plan.memory, plan.compiled
    params = abstract_params(policy_config(quickstart()["model"]))
    whole = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    # Small vectors are on every chip.
    assert 3 < whole / memory["parameters (float32)"] <= 4
    assert memory["optimizer"] == pytest.approx(2 * memory["parameters (float32)"], rel=1e-3)
    assert memory["moving average"] == memory["parameters (float32)"]
    # 2 of 8 samples: two images, 16 steps of 4 actions, a state, and masks and indices.
    assert memory["batch"] == 2 * (2 * 64 * 64 * 3 + 4 * (16 * 4 + 4) + 16 + 4 + 1 + 3 * 4)
    assert memory["autoencoder"] == 4 * (768 * 64 + 768 + 64)
    assert compiled.arguments >= sum(memory.values()) and compiled.temporaries > 0
    # The state is donated.
    state = memory["parameters (float32)"] + memory["moving average"] + memory["optimizer"]
    assert state <= compiled.aliased <= compiled.arguments
    assert 0.9 < plan.spare < 1


def test_work_and_traffic_of_a_tiny_step(plan):
    counts, compiled = plan.counts, plan.compiled
    once = counts.computed - counts.recomputed - counts.autoencoder
    assert once / counts.useful == pytest.approx(1, rel=0.05)
    # No work is dropped or done on several chips at once.
    assert compiled.flops * plan.chips / counts.computed == pytest.approx(1, rel=0.15)
    assert not compiled.unknown_loops
    # Three chips' parts of every parameter are gathered at least once, and of its gradient summed;
    # at most twice, forward and backward, and by all-reduce.
    parts = 3 * plan.memory["parameters (float32)"]
    assert 2 * parts < sum(v.wire for v in compiled.collectives.values()) < 4.5 * parts
    assert set(compiled.collectives) & {"reduce-scatter", "all-reduce"}


def test_time_of_a_tiny_step(plan):
    """It cannot be shorter than its floor, and each kind of traffic is hidden or waited for."""
    estimate = plan.estimate
    assert 0 < estimate.floor_seconds < estimate.low_seconds <= estimate.seconds
    assert estimate.seconds <= estimate.high_seconds
    assert 0 < estimate.products_share < 1
    at_peak = plan.counts.useful / (plan.chips * 197e12)
    assert estimate.mfu == pytest.approx(at_peak / estimate.seconds)
    for kind, sent in estimate.collectives.items():
        assert sent.received == plan.compiled.collectives[kind].wire
        assert sent.hidden + sent.exposed == pytest.approx(sent.seconds, rel=1e-6)
    lines = [operation.source for operation in plan.compiled.cost.operations]
    assert len(lines) == 20 and any("models/" in line for line in lines)


def test_acting(tmp_path, capsys):
    arguments = [QUICKSTART, "--topology=v5e:1x1", "--what=act", "--batch=2"]
    arguments += ["--config.acting.euler_steps=3", f"--output={tmp_path}"]
    assert cli.main(["aot", *arguments]) == 0
    page = (tmp_path / "quickstart-act-v5e-1x1.md").read_text()
    printed = capsys.readouterr().out
    assert page in printed and printed.splitlines()[-1].startswith("Estimated: a step takes ")
    assert "0.8 MiB on each chip" in page  # 2 robots, 6 layers, 64 tokens of 128 channels, float32
    assert "--batch=2" in page and "--config.acting.euler_steps=3" in page
    plan = plan_from_json((tmp_path / "quickstart-act-v5e-1x1.json").read_text())
    once = plan.counts.computed - plan.counts.autoencoder
    assert once / plan.counts.useful == pytest.approx(1, rel=0.05)
    assert plan.samples == 2 and not plan.compiled.collectives


def test_what_cannot_run_is_an_error_before_compiling():
    config = quickstart("--config.mesh.fsdp=3")
    with pytest.raises(ConfigError, match="4 devices"):
        make_plan(config, "v5e:2x2", default_inputs(config))
    config = quickstart("--config.train.batch_size=6")
    with pytest.raises(ConfigError, match="batch_size 6"):
        make_plan(config, "v5e:2x2", default_inputs(config))


def test_what_does_not_fit_is_a_plan_that_says_so():
    config = quickstart(FAST, "--config.train.batch_size=65536", "--config.model.remat=none")
    plan = make_plan(config, "v5e:1x1", default_inputs(config))
    assert plan.compiled is None and "exceeds available HBM (15.75G)" in plan.shortage
    assert "does not fit" in plan.markdown() and json.loads(plan.to_json())["compiled"] is None


def test_klein_4b_trains_on_eight_chips_of_v5e():
    """The official LIBERO step of FLUX.2 klein 4B: all layers, losses, AdamW. The autoencoder is a
    small one: the official one takes a third of the time to compile."""
    path = f"{ROOT / 'configs' / 'libero.py'}:4b"
    config = load_config(path, [FAST, "--config.train.batch_size=8"]).to_dict()
    config["autoencoder"] = {"name": "patch", "factor": 16, "channels": 128, "weights": ""}
    plan = make_plan(config, "v5e:2x4", default_inputs(config))
    assert plan.spare > 0.1
    counts = plan.counts
    once = counts.computed - counts.recomputed - counts.autoencoder
    assert once / counts.useful == pytest.approx(1, abs=0.05)
    assert once / counts.dense < 0.70
    assert plan.compiled.flops * plan.chips / counts.computed == pytest.approx(1, abs=0.05)

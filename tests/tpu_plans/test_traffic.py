"""What chips send each other in a step, as the TPU compiler makes it of a small model.

Parameters are divided over all chips. Each layer is gathered in the forward pass and once more in
the backward pass, and its gradient leaves the layer's step of the scan as a reduce-scatter, all in
the dtype that the step computes in.
"""

import math

import pytest

from imagewam_jax.config.loading import load_config
from imagewam_jax.config.schema import policy_config
from imagewam_jax.models.parameters import abstract_params, flatten
from imagewam_jax.tpu_plans.arguments import default_inputs
from imagewam_jax.tpu_plans.plan import make_plan
from tests.tpu_compiler import needs_libtpu
from tests.training.tiny import ROOT

pytestmark = [
    pytest.mark.slow(minutes=2),
    pytest.mark.tpu_compile,
    needs_libtpu,
]
CHIPS = 4
# The quickstart's policy, with heads as wide as those of FLUX.2 and layers that are most of it.
SMALL = [
    "--config.model.backbone.dim=512",
    "--config.model.backbone.heads=4",
    "--config.model.backbone.rope_axes=(32,32,32,32)",
    "--config.model.backbone.double_layers=2",
    "--config.model.backbone.single_layers=3",
    "--config.model.expert.dim=256",
    "--config.model.remat=save_matmuls",
    "--config.model.unroll=1",
    "--config.train.batch_size=8",
    "--config.train.compute_dtype=bfloat16",
    f"--config.mesh.fsdp={CHIPS}",
]


@pytest.fixture(scope="module")
def step():
    """The parameters of the layers, all others, and a plan of the step."""
    config = load_config(str(ROOT / "configs" / "quickstart.py"), SMALL).to_dict()
    params = flatten(abstract_params(policy_config(config["model"])))
    layers = {path: x for path, x in params.items() if "_layers." in path}
    others = {path: x for path, x in params.items() if path not in layers}
    return layers, others, make_plan(config, "v5p:2x2x1", default_inputs(config))


def received(params) -> float:
    """What a chip receives when each of the others sends it its part of these parameters."""
    numbers = sum(math.prod(x.shape) for x in params.values() if x.ndim > 1)
    return 2 * numbers * (CHIPS - 1) / CHIPS  # bfloat16


def test_parameters_are_gathered_once_forward_and_once_backward(step):
    layers, others, plan = step
    gathered = plan.compiled.collectives["all-gather"]
    assert gathered.groups.keys() == {CHIPS}
    least = 2 * received(layers) + received(others)
    assert 0.98 * least < gathered.wire < 1.05 * (least + received(others))


def test_gradients_of_layers_leave_as_reduce_scatters(step):
    layers, others, plan = step
    scattered = plan.compiled.collectives["reduce-scatter"]
    assert scattered.groups.keys() == {CHIPS}
    # Of some small kernels a chip gets the activations instead.
    assert 0.95 * received(layers) < scattered.wire < 1.02 * (received(layers) + received(others))
    # At least one for each kernel of each of the backbone's layers: they leave inside the scan.
    kernels = [x for path, x in layers.items() if path.startswith("backbone.") and x.ndim > 2]
    assert scattered.count >= sum(x.shape[0] for x in kernels) > 0


def test_little_else_is_sent(step):
    """The compiler reduces small gradients outside of the layers as wholes, which is twice as much;
    then there are vectors and the numbers of the metrics."""
    layers, others, plan = step
    scattered = plan.compiled.collectives["reduce-scatter"].wire - received(layers)
    wanted = {"all-gather", "reduce-scatter"}
    rest = {k: v for k, v in plan.compiled.collectives.items() if k not in wanted}
    whole = 2 * (received(others) - max(0, scattered))
    assert sum(v.wire for v in rest.values()) < 1.05 * whole + 0.01 * received(layers), rest

"""The PyTorch policy of the benchmarks computes what ours does."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import workload  # noqa: E402
from benchmarks.contestants import jax_calls, torch_calls  # noqa: E402
from benchmarks.torch_imagewam import Draws, TorchImageWAM  # noqa: E402
from benchmarks.torch_policy import (  # noqa: E402
    PolicyAssets,
    TorchTrainer,
    load_params,
    torch_tensors,
)
from imagewam_jax.checkpoints.assets import asset_trees  # noqa: E402
from imagewam_jax.models.imagewam import sample_draws  # noqa: E402
from imagewam_jax.models.parameters import policy_builder  # noqa: E402
from imagewam_jax.preprocess.inputs import image_spec, make_sample  # noqa: E402
from imagewam_jax.training.optimizer import make_optimizer, update_ema  # noqa: E402

RELATIVE = 1e-4

# The benchmark alone uses this model of PyTorch.
pytestmark = pytest.mark.slow(minutes=1)


@pytest.fixture(scope="module")
def work() -> workload.Workload:
    return workload.make_workload(batch_size=3)


@pytest.fixture(scope="module")
def ours(work):
    """The loss, its gradients, parameters and averages after one update, and the draws."""

    def run(params, assets, batch):
        sample = make_sample(assets, image_spec(work.config["data"]), batch)
        draws = sample_draws(jax.random.key(1), sample)

        def loss(params):
            return policy_builder(work.policy)(params).training_loss(sample, draws)[0]

        value, grads = jax.value_and_grad(loss)(params)
        optimizer = make_optimizer(work.config["optimizer"], work.config["train"]["steps"])
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        updated = jax.tree.map(lambda p, u: p + u, params, updates)
        ema = update_ema(params, updated, 0, work.config["optimizer"]["ema_decay"])
        return value, grads, updated, ema, draws

    return jax.jit(run)(work.params, work.assets, work.batch)


@pytest.fixture(scope="module")
def theirs(work, ours):
    """A trainer after one update with the same draws, and its loss before that."""
    assets = PolicyAssets(asset_trees(work.assets), work.assets.autoencoder.factor)
    model = TorchImageWAM(work.policy, (4, 4), work.assets.text.shape[1])
    load_params(model, work.params)
    trainer = TorchTrainer(model, assets, work.config)
    sample = assets.sample({k: torch.from_numpy(v) for k, v in work.batch.items()})
    draws = Draws(*(torch.from_numpy(np.array(x)) for x in ours[4]))
    gradients = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters()})
    )
    loss = trainer.update(sample, draws)
    return loss, gradients, dict(model.named_parameters()), trainer.ema


def test_the_loss_is_the_same(ours, theirs):
    np.testing.assert_allclose(theirs[0].numpy(), ours[0], rtol=RELATIVE)


def test_every_gradient_is_the_same(work, ours, theirs):
    expected = torch_tensors(work.policy, ours[1])
    norm = torch.cat([g.flatten() for g in expected.values()]).double().norm()
    clip = min(1.0, work.config["optimizer"]["clip_norm"] / norm)
    assert theirs[1].keys() == expected.keys()
    for name, gradient in theirs[1].items():
        _assert_close(gradient, clip * expected[name], name)


def test_one_update_is_the_same(work, ours, theirs):
    for tree, tensors in ((ours[2], list(theirs[2].values())), (ours[3], theirs[3])):
        expected = torch_tensors(work.policy, tree)
        for name, tensor in zip(theirs[2], tensors, strict=True):
            _assert_close(tensor.detach(), expected[name], name)


def test_actions_are_the_same(work):
    expected = jax_calls(work)["act"]()
    actions = torch_calls(work, compiled=False)["act"]()
    np.testing.assert_allclose(actions, expected, atol=RELATIVE * np.abs(expected).max())


def _assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str) -> None:
    difference = (actual - expected).norm() / expected.norm()
    assert difference < RELATIVE, f"{name}: relative difference {difference:.1e}"

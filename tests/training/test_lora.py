"""Low-rank additions: what they compute, what is trained, and what becomes of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagewam_jax.checkpoints.initial_weights import initial_weights
from imagewam_jax.checkpoints.merged_lora import merged_params, saved_policy, without_lora
from imagewam_jax.checkpoints.store import open_checkpoint
from imagewam_jax.config.schema import policy_config
from imagewam_jax.models.action_expert import ActionExpertConfig
from imagewam_jax.models.backbones.flux2 import KLEIN_4B
from imagewam_jax.models.imagewam import ImageWAM, ImageWAMConfig
from imagewam_jax.models.layers import Axis, Linear
from imagewam_jax.models.lora import LoRAConfig, add_lora
from imagewam_jax.models.parameters import abstract_params, flatten, initial_params, policy_builder
from imagewam_jax.training.state import trained_paths
from imagewam_jax.training.train import train
from tests.training.tiny import copy_sample, tiny_config, trained_run

RANK, ALPHA = 2, 6.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run on top of another one's weights."""
    folder = tmp_path_factory.mktemp("lora")
    config = tiny_config(copy_sample(folder))
    config.model.lora = {"rank": RANK, "alpha": ALPHA}
    config.train.update(initial_weights=str(trained_run()), steps=4, checkpoint_every=4)
    train(config, folder / "run")
    return folder / "run"


def test_the_official_layers_and_no_others_have_additions():
    """80 layers of klein 4B, q, k, v (and gate and up) as one: docs/spec/imagewam_flux2.md, 8.2."""
    config = ImageWAMConfig(KLEIN_4B, ActionExpertConfig(), lora=LoRAConfig(16, 16.0))
    policy = jax.eval_shape(lambda: ImageWAM(config, rngs=nnx.Rngs(0)))
    with_additions = [
        path for path, m in nnx.iter_graph(policy) if isinstance(m, Linear) and m.lora is not None
    ]
    assert all(path[0] == "backbone" and "layers" in path[1] for path in with_additions)
    # Image and text: q, k, v, out, gate, up, out in 5 layers; the single layers' 7 in 20.
    assert len(with_additions) == 2 * 7 + 7
    fused = 5 * 2 * 4 + 20 * 2
    assert fused == 80


def test_a_layer_adds_its_scaled_product():
    layers = jax.vmap(
        lambda key: Linear(Axis("embed", 3), Axis("heads", 8), rngs=nnx.Rngs(params=key))
    )(jax.random.split(jax.random.key(0), 5))
    for _, variable in nnx.iter_graph(layers):
        if isinstance(variable, nnx.Param):
            variable.set_metadata(axes=("layer", *variable.get_metadata("axes")))
    plain = layers.kernel[...]
    add_lora(layers, LoRAConfig(RANK, ALPHA), nnx.Rngs(1))
    x = jax.random.normal(jax.random.key(2), (5, 7, 3))
    apply = jax.vmap(lambda layer, x: layer(x))
    np.testing.assert_allclose(apply(layers, x), jnp.einsum("lbi,lio->lbo", x, plain), atol=1e-5)
    layers.lora.b[...] = jax.random.normal(jax.random.key(3), layers.lora.b.shape)
    added = jnp.einsum("lir,lro->lio", layers.lora.a[...], layers.lora.b[...])
    expected = jnp.einsum("lbi,lio->lbo", x, plain + ALPHA / RANK * added)
    np.testing.assert_allclose(apply(layers, x), expected, rtol=1e-5, atol=1e-5)


def test_only_additions_and_the_action_side_are_trained(finished):
    checkpoints, step = open_checkpoint(finished)
    trees = {name: checkpoints.abstract(step, name) for name in ("params", "ema", "optimizer")}
    trees = checkpoints.restore(step, trees)
    checkpoints.close()
    before, after = flatten(parameters(trained_run(), "ema")), flatten(trees["params"])
    moments = flatten(trees["optimizer"][1][0]["mu"])
    for path, leaf in after.items():
        trained = ".lora." in path or not path.startswith("backbone")
        assert (path in moments) == trained, path
        if path in before:
            assert np.array_equal(before[path], leaf) != trained, path
    assert {path for path in after if path not in before} == {p for p in after if ".lora." in p}
    assert any(np.any(leaf) for path, leaf in after.items() if path.endswith("lora.b"))


def tiny_policy():
    return policy_config(tiny_config("").to_dict()["model"])


def parameters(run, tree):
    checkpoints, step = open_checkpoint(run)
    found = checkpoints.restore(step, {tree: checkpoints.abstract(step, tree)})[tree]
    checkpoints.close()
    return found


def test_merged_kernels_compute_the_same(finished):
    config = tiny_policy()
    with_additions = dataclasses.replace(config, lora=LoRAConfig(RANK, ALPHA))
    assert without_lora(with_additions) == config
    params = parameters(finished, "ema")
    merged = merged_params(params, with_additions.lora)
    assert flatten(merged).keys() == flatten(abstract_params(config)).keys()
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))
    timestep = jnp.full(2, 300.0)

    def predict(config, params):
        backbone = policy_builder(config)(params).backbone
        layer = jax.tree.map(lambda leaf: leaf[0], backbone.single_layers)
        on = backbone.group_conditions(backbone.condition(timestep))[1]
        return layer.block.project(x, on)

    for one, other in zip(predict(with_additions, params), predict(config, merged), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_saved_policy_is_read_with_merged_kernels(finished):
    params = parameters(finished, "ema")
    lora = LoRAConfig(RANK, ALPHA)
    checkpoints, step = open_checkpoint(finished)
    saved = saved_policy(checkpoints, step, "ema", lora)
    expected = flatten(merged_params(params, lora))
    assert flatten(saved.abstract).keys() == expected.keys()
    for path, leaf in expected.items():
        layer = 0 if "layers" in path else None
        found = saved(path, layer)
        np.testing.assert_allclose(found, leaf if layer is None else leaf[0], rtol=1e-6, atol=1e-7)
    checkpoints.close()


def test_a_policy_with_additions_starts_from_one_without(finished):
    config = tiny_config("")
    wider = dataclasses.replace(tiny_policy(), lora=LoRAConfig(RANK, ALPHA))
    assert initial_weights(trained_run(), wider).random == ("lora",)
    trained = trained_paths(wider, config.train.frozen)
    assert trained == {
        path
        for path in flatten(initial_params(wider, 0))
        if ".lora." in path or not path.startswith("backbone")
    }

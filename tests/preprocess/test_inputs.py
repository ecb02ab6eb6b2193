"""From batches of the loader to samples: layouts of several cameras, units, and masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from imagewam_jax.checkpoints.assets import (
    ASSET_TREES,
    asset_trees,
    assets_from_trees,
    new_autoencoder,
)
from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import DataError
from imagewam_jax.models.imagewam import ImageWAM, sample_draws
from imagewam_jax.preprocess.images import ImageSpec
from imagewam_jax.preprocess.inputs import (
    Observations,
    PolicyAssets,
    make_context,
    make_sample,
    target_weights,
)
from imagewam_jax.preprocess.normalization import Normalizer
from tests.training.tiny import tiny_config

AUTOENCODER = {"name": "patch", "factor": 4, "channels": 8, "weights": ""}
BATCH, HORIZON, ACTION, STATE = 3, 4, 5, 6
SIDES = (8, 12)


@pytest.fixture(scope="module")
def assets():
    rng = np.random.default_rng(0)
    return PolicyAssets(
        autoencoder=new_autoencoder(AUTOENCODER),
        text=jnp.asarray(rng.normal(size=(2, 7, 192)).astype(np.float32)),
        text_length=jnp.array([7, 3]),
        # Rows of two datasets.
        actions=Normalizer(jnp.array([[2.0], [4.0]]) * ones(ACTION), 0.5 * ones(ACTION)),
        state=Normalizer(jnp.array([[0.5], [0.25]]) * ones(STATE), -ones(STATE)),
    )


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    present = np.ones((BATCH, ACTION), bool)
    present[1, 3:] = False
    return {
        "images": rng.integers(0, 256, (BATCH, 2, 2, *SIDES, 3)).astype(np.uint8),
        "image_size": np.full((BATCH, 2, 2), SIDES),
        "dataset_id": np.array([0, 1, 0]),
        "target_is_pad": np.array([False, True, False]),
        "text_id": np.array([1, 0, 1]),
        "proprio": rng.normal(size=(BATCH, STATE)).astype(np.float32),
        "actions": rng.normal(size=(BATCH, HORIZON, ACTION)).astype(np.float32),
        "action_is_pad": np.arange(HORIZON) >= np.array([[4], [2], [1]]),
        "action_dim_mask": present,
    }


def ones(width):
    return jnp.ones((2, width))


def images_in(layout):
    return ImageSpec(layout, SIDES, "")


def latent(assets, images):
    return assets.autoencoder.encode(jnp.asarray(images, jnp.float32) / 127.5 - 1)


def test_cameras_as_references_of_their_own(assets, batch):
    sample = make_sample(assets, images_in("references"), batch)
    assert sample.context.references.shape == (BATCH, 2, 2, 3, 8)
    for camera in range(2):
        expected = latent(assets, batch["images"][:, camera, 0])
        np.testing.assert_allclose(sample.context.references[:, camera], expected, atol=1e-5)
    # The first camera's future is what is imagined.
    np.testing.assert_allclose(sample.target, latent(assets, batch["images"][:, 0, 1]), atol=1e-5)


def test_cameras_side_by_side_are_one_reference(assets, batch):
    sample = make_sample(assets, images_in("row"), batch)
    now, future = (np.concatenate(list(batch["images"][:, :, m].swapaxes(0, 1)), 2) for m in (0, 1))
    assert now.shape == (BATCH, 8, 24, 3) and sample.context.references.shape == (BATCH, 1, 2, 6, 8)
    np.testing.assert_allclose(sample.context.references[:, 0], latent(assets, now), atol=1e-5)
    np.testing.assert_allclose(sample.target, latent(assets, future), atol=1e-5)


@pytest.mark.parametrize("layout", ["references", "row"])
def test_acting_sees_what_training_saw(assets, batch, layout):
    context = make_sample(assets, images_in(layout), batch).context
    current = Observations(batch["images"][:, :, 0], batch["proprio"], batch["text_id"])
    found = make_context(assets, images_in(layout), current, batch["dataset_id"])
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(context), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_one_camera_layouts_refuse_two(assets, batch):
    with pytest.raises(DataError, match="layout 'single': 2 cameras, expected 1"):
        make_sample(assets, images_in("single"), batch)


def test_numbers_are_normalised_and_missing_ones_are_zero(assets, batch):
    sample = make_sample(assets, images_in("row"), batch)
    scale = np.array([2, 4, 2])[:, None]  # each sample by its own dataset's
    expected = ((batch["actions"] - 0.5) * scale[..., None]).clip(-5, 5)
    expected[1, :, 3:] = 0
    np.testing.assert_allclose(sample.actions, expected, rtol=1e-6)
    np.testing.assert_allclose(sample.context.proprio, (batch["proprio"] + 1) / scale, rtol=1e-6)
    np.testing.assert_array_equal(sample.action_is_pad, batch["action_is_pad"])
    np.testing.assert_array_equal(sample.action_dim_is_pad, ~batch["action_dim_mask"])
    np.testing.assert_array_equal(sample.context.text, assets.text[batch["text_id"]])
    np.testing.assert_array_equal(sample.context.text_length, [3, 7, 3])
    assert sample.target_weight is None
    weight = target_weights(batch["target_is_pad"])
    np.testing.assert_allclose(weight, [1.5, 0, 1.5], rtol=1e-6)
    masked = make_sample(assets, images_in("row"), batch | {"target_weight": weight})
    np.testing.assert_array_equal(masked.target_weight, weight)
    np.testing.assert_array_equal(target_weights(np.ones(3, bool)), np.zeros(3))


@pytest.mark.parametrize("layout", ["references", "row"])
def test_a_policy_trains_and_acts_with_any_layout_and_action_space(assets, batch, layout):
    """Sizes come from the config alone; each camera matters to loss and actions."""
    config = tiny_config("").to_dict()["model"]
    config["expert"]["action_dim"], config["proprio_dim"] = ACTION, STATE
    policy = policy_config(config | {"horizon": HORIZON})

    @jax.jit
    def compute(batch):
        model = ImageWAM(policy, rngs=nnx.Rngs(0))
        # New output heads are zero: nothing would show.
        model = jax.tree.map(lambda p: p + 0.05 * jnp.cos(jnp.indices(p.shape).sum(0)), model)
        sample = make_sample(assets, images_in(layout), batch)
        draws = sample_draws(jax.random.key(0), sample)
        actions, _ = model.act(
            model.prefill(sample.context), draws.action_noise, model.action_schedule(2)
        )
        return model.training_loss(sample, draws)[1]["action_loss_b"], actions

    loss, actions = compute(batch)
    assert actions.shape == (BATCH, HORIZON, ACTION) and np.isfinite(loss).all()
    for camera in range(2):
        images = batch["images"].copy()
        images[:, camera, 0] = 255 - images[:, camera, 0]
        other_loss, other_actions = compute(batch | {"images": images})
        assert (np.asarray(other_loss) != loss).all()
        assert (np.abs(other_actions - actions).max((1, 2)) > 1e-6).all()


def test_assets_survive_as_dictionaries(assets):
    trees = jax.tree.map(np.asarray, asset_trees(assets))
    restored = assets_from_trees(trees, AUTOENCODER)
    for a, b in zip(jax.tree.leaves(assets), jax.tree.leaves(restored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert set(trees) == set(ASSET_TREES)

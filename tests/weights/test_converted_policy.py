"""A converted official policy acts in real units, with the assets that it is given."""

import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from imagewam_jax.config.schema import policy_config
from imagewam_jax.errors import CheckpointError, ConfigError, DataError
from imagewam_jax.models.parameters import abstract_params, policy_builder
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations, image_spec, make_context
from imagewam_jax.text.tables import write_text_table
from imagewam_jax.weights.convert import convert
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.imagewam import imagewam_rules, imagewam_source
from tests.goldens import golden
from tests.weights.foreign import converted, copy_case, to_tree

INSTRUCTIONS = ("open the drawer", "close the drawer")
TEMPLATE = "A video recorded from a robot's point of view executing the following instruction: "


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of the policy alone, the autoencoder alone and both; and a table of two prompts."""
    folder = tmp_path_factory.mktemp("folders")
    source = copy_case(golden("imagewam_flux2"), folder / "source", "model.safetensors")
    shutil.copyfile(
        golden("normalization") / "stats_single.json", folder / "source" / "dataset_stats.json"
    )
    autoencoder = golden("flux2_autoencoder") / "weights.safetensors"
    given = {"normalization": "min/max"}
    convert([autoencoder], folder / "autoencoder")
    convert([source, autoencoder], folder / "both", overrides=given)
    # The policy alone does not know of an autoencoder of these sizes: the config says so.
    config = converted(folder / "both")[0]["config"]
    convert([source], folder / "policy", overrides=given, config=config)
    rows = load_file(golden("imagewam_flux2") / "train.safetensors")["text_hidden_states"]
    lengths = [5, 7]
    prompts = [TEMPLATE + instruction for instruction in INSTRUCTIONS]
    tokens = [row[:n] for row, n in zip(rows, lengths, strict=True)]
    write_text_table(folder / "text.safetensors", prompts, lengths, tokens, 48, "qwen3(dim=16)")
    return folder


@pytest.fixture(scope="module")
def policy(folders):
    return load_policy(
        folders / "policy",
        autoencoder=folders / "autoencoder",
        text_table=folders / "text.safetensors",
    )


@pytest.fixture(scope="module")
def case(policy):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 1, 32, 48, 3)).astype(np.uint8)
    state = rng.normal(size=(2, 8)).astype(np.float32)
    noise = rng.normal(size=(2, policy.horizon, policy.action_dim)).astype(np.float32)
    return Observations(images, state, policy.text_ids(INSTRUCTIONS)), noise


def test_actions_are_those_of_the_official_weights_in_real_units(policy, case, folders):
    observations, noise = case
    actions = policy.act(observations, noise)
    assert actions.shape == (2, 6, 7) and np.isfinite(actions).all()

    config = policy_config(policy.config["model"])
    tensors = ArraySource(load_file(folders / "source" / "model.safetensors"), "file")
    params = to_tree(
        imagewam_rules(config), imagewam_source(tensors, {}, None), abstract_params(config), "file"
    )

    @jax.jit
    def act(params, assets):
        images = image_spec(policy.config["data"])
        context = make_context(assets, images, observations)
        model = policy_builder(config)(params)
        return model.act(model.prefill(context), noise, model.action_schedule(10))[0]

    normalized = np.asarray(act(params, policy._assets))
    statistics = json.loads((folders / "source" / "dataset_stats.json").read_text())
    low, high = (np.array(statistics["action"]["default"][f"global_{n}"]) for n in ("min", "max"))
    width = np.where(high - low < 1e-4, 2.0, high - low)
    middle = np.where(high - low < 1e-4, low, (low + high) / 2)
    np.testing.assert_allclose(actions, middle + normalized * width / 2, rtol=1e-5, atol=1e-6)


def test_the_autoencoder_can_be_converted_along(policy, case, folders):
    both = load_policy(folders / "both", text_table=folders / "text.safetensors")
    np.testing.assert_array_equal(both.act(*case), policy.act(*case))


def test_the_instruction_matters(policy, case):
    observations, noise = case
    swapped = observations._replace(text_id=observations.text_id[::-1].copy())
    assert np.abs(policy.act(swapped, noise) - policy.act(*case)).max() > 1e-3


def test_text_of_another_encoder(folders, tmp_path):
    """A converted policy knows the kind and the width of its encoder."""
    wrong = {"made by the encoder 'bytes'": ("bytes", 48), "have 32 channels": ("qwen3(dim=9)", 32)}
    for message, (encoder, channels) in wrong.items():
        features = [np.zeros((2, channels), np.float32)]
        write_text_table(tmp_path / "text", ["go"], [2], features, channels, encoder)
        with pytest.raises((DataError, ConfigError), match=message):
            load_policy(folders / "both", text_table=tmp_path / "text")


def test_what_is_lacking_is_named(folders):
    text = folders / "text.safetensors"
    with pytest.raises(CheckpointError, match=r"cannot act without \['autoencoder', 'text'\]"):
        load_policy(folders / "policy")
    with pytest.raises(CheckpointError, match=r"cannot act without \['text'\]"):
        load_policy(folders / "both")
    with pytest.raises(CheckpointError, match=r"not a whole policy; it has \['autoencoder'\]"):
        load_policy(folders / "autoencoder")
    with pytest.raises(CheckpointError, match="no 'autoencoder' in it"):
        load_policy(folders / "policy", autoencoder=folders / "policy", text_table=text)
    source = copy_case(golden("imagewam_flux2"), folders / "bare", "model.safetensors")
    config = converted(folders / "both")[0]["config"]
    convert([source], folders / "bare_out", config=config)
    with pytest.raises(CheckpointError, match=r"cannot act without \['normalizers'\]"):
        load_policy(folders / "bare_out", autoencoder=folders / "autoencoder", text_table=text)

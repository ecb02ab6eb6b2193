"""A policy with its text encoder acts on instructions that it was not saved with."""

import json
import logging
import shutil

import numpy as np
import pytest

from imagewam_jax.errors import CheckpointError, ConfigError, InputError
from imagewam_jax.policy.met_instructions import MetInstructions
from imagewam_jax.policy.policy import load_policy
from imagewam_jax.preprocess.inputs import Observations
from imagewam_jax.text.encoders import encode_text, make_text_encoder
from tests.text.tiny_qwen3 import parameters, write_encoder
from tests.training.tiny import INSTRUCTIONS, trained_run

NEW = "wash it"


@pytest.fixture(scope="module")
def policy():
    return load_policy(trained_run(), text_encoder="config")


@pytest.fixture(scope="module")
def closed():
    """The same policy without its encoder."""
    return load_policy(trained_run())


def act(policy, instructions):
    rng = np.random.default_rng(0)
    rows = len(instructions)
    images = np.repeat(rng.integers(0, 256, (1, 1, 64, 64, 3)).astype(np.uint8), rows, 0)
    state = np.full((rows, 4), 0.1, np.float32)
    noise = np.repeat(rng.normal(size=(1, 4, 4)).astype(np.float32), rows, 0)
    return policy.act(Observations(images, state, policy.text_ids(instructions)), noise)


def test_a_new_instruction_has_the_features_that_training_would_give_it(policy):
    (number,) = policy.text_ids([NEW])
    assert number >= len(INSTRUCTIONS) and policy.knows(NEW)
    (row,) = policy._met.rows(np.array([number], np.int32))
    expected = encode_text(policy.config["text"], [NEW])
    assert policy._assets.text_length[row] == expected.lengths[0]
    np.testing.assert_array_equal(policy._assets.text[row], expected.features[0])


def test_it_is_acted_on_and_the_others_as_before(policy, closed):
    """The actions for saved instructions stay the same, bit for bit."""
    found = act(policy, [*INSTRUCTIONS, NEW])
    np.testing.assert_array_equal(found[:2], act(closed, [*INSTRUCTIONS, "open the faucet"])[:2])
    assert np.abs(found[2] - found[:2]).max(axis=(1, 2)).min() > 1e-3


def test_it_is_encoded_once(policy, caplog):
    with caplog.at_level(logging.INFO, "imagewam_jax.policy"):
        numbers = policy.text_ids(["fold it", "open the faucet", "fold it"])
        assert policy.text_ids(["fold it"]) == numbers[0] == numbers[2]
    (record,) = (r for r in caplog.records if "encoded" in r.getMessage())
    assert "encoded 'fold it' in " in record.getMessage()


def test_the_instruction_met_longest_ago_gives_up_its_place(policy):
    """The number of an evicted instruction is never reused, and raises InputError."""
    section = policy.config["text"]
    met = MetInstructions(make_text_encoder(section), section, first=3, tokens=20, places=2)
    assert [met.keep("a"), met.keep("b")] == [(3, 3), (4, 4)]
    assert met.number("a") == 3  # asked for again
    assert met.keep("c") == (5, 4) and met.numbers == 6
    assert met.rows(np.array([0, 5, 3], np.int32)).tolist() == [0, 4, 3]
    assert "b" not in met and met.number("b") is None
    with pytest.raises(InputError, match="text_id: the instruction of 4 has given up its place"):
        met.rows(np.array([3, 4], np.int32))
    assert met.keep("b") == (6, 3)


def test_an_instruction_that_is_too_long(policy, closed):
    long = "wash it and then fold it"  # with its marks, 26 tokens; 20 fit
    with pytest.raises(InputError, match="is 26 tokens long, at most 20 fit"):
        policy.text_ids([long])
    roomy = load_policy(trained_run(), text_encoder="config", text_tokens=31)
    assert roomy.text_ids([long]) == [2]
    expected = act(closed, ["open the faucet"])
    np.testing.assert_allclose(act(roomy, ["open the faucet"]), expected, atol=1e-6)
    with pytest.raises(ConfigError, match=r"text_tokens is 19, .* may have 20"):
        load_policy(trained_run(), text_tokens=19)


def test_a_policy_that_was_saved_without_text(closed, tmp_path):
    step = shutil.copytree(trained_run() / "checkpoints" / "40", tmp_path / "40")
    shutil.rmtree(step / "text")
    with pytest.raises(CheckpointError, match=r"cannot act without \['text'\]"):
        load_policy(step)
    with pytest.raises(ConfigError, match="say how many tokens"):
        load_policy(step, text_encoder="config")
    policy = load_policy(step, text_encoder="config", text_tokens=20)
    assert policy.instructions == ()
    # One by one they are encoded with other rounding than together.
    np.testing.assert_allclose(act(policy, INSTRUCTIONS), act(closed, INSTRUCTIONS), atol=1e-5)


def test_two_instructions_that_became_one_prompt(closed, tmp_path):
    """The text has two rows for one prompt: it is acted on, and a new instruction gets a third."""
    step = shutil.copytree(trained_run() / "checkpoints" / "40", tmp_path / "40")
    metadata = step / "metadata" / "metadata"
    content = json.loads(metadata.read_text())
    content["prompts"] = [INSTRUCTIONS[1]] * 2
    metadata.write_text(json.dumps(content))
    for policy in (load_policy(step), load_policy(step, text_encoder="config")):
        assert policy.text_ids([INSTRUCTIONS[1]]) == [1]
        np.testing.assert_array_equal(act(policy, INSTRUCTIONS[1:]), act(closed, INSTRUCTIONS[1:]))
    assert policy.text_ids([NEW]) == [2]


def test_without_an_encoder_the_error_says_how_to_add_more(closed):
    assert closed.instructions == INSTRUCTIONS and not closed.encodes_text
    assert closed.knows("open the faucet") and not closed.knows(NEW)
    with pytest.raises(CheckpointError, match=r"it knows \['close .*--text-table.*--text-encoder"):
        closed.text_ids([NEW])


def test_another_encoder_than_the_policy_was_trained_with(tmp_path):
    weights = write_encoder(tmp_path / "encoder", parameters())
    with pytest.raises(ConfigError, match="the weights of byte_qwen3 are random ones"):
        load_policy(trained_run(), text_encoder=weights)

"""Eight devices, of one process or of two, compute what one does, and share what they hold."""

import pickle
import sys

import numpy as np
import pytest

from imagewam_jax.config.defaults import defaults
from imagewam_jax.models.sharding import make_mesh
from imagewam_jax.policy.policy import load_policy
from tests.evaluation.untrained import shrink, untrained_run, write_public_set
from tests.hosts import run_together
from tests.policy.mesh_actions import BATCH, MESHES, ROBOTS
from tests.shared_folder import shared

HEADS = 2


def low_rank_run():
    """The folder of an untrained policy with low-rank additions, which loading merges."""

    def make(folder):
        config = shrink(defaults(), factor=16)
        dataset = write_public_set(folder / "1.0.0", "metaworld_faucet", [(64, 64)], [7, 6])
        config.data.update(directory=str(dataset), dataset="metaworld_faucet", image_size=(64, 64))
        config.data.update(train_split="train[:1]", eval_split="train[1:]")
        config.model.expert.action_dim = config.model.proprio_dim = config.model.horizon = 4
        config.model.lora.update(rank=2, alpha=2.0)
        untrained_run(config, folder / "run")

    return shared("low_rank", make) / "run"


def computed(file, *meshes: str, processes: int) -> dict:
    """What processes that share eight devices compute on these meshes."""
    program = [sys.executable, "-m", "tests.policy.mesh_actions", str(file), str(low_rank_run())]
    run_together(program, *meshes, processes=processes, devices=8 // processes)
    return pickle.loads(file.read_bytes())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("meshes")
    one = computed(folder / "one", *MESHES, processes=1)
    two = computed(folder / "two", "data_fsdp_tensor", "one_row", processes=2)
    return one | {f"{name} of two": results for name, results in two.items()}


ON_MESHES = [*list(MESHES)[1:], "data_fsdp_tensor of two", "one_row of two"]


@pytest.mark.slow(minutes=3)
@pytest.mark.parametrize("name", ON_MESHES)
def test_a_mesh_computes_what_one_device_does(found, name):
    for what, expected in found["one"].items():
        assert len(expected) == (1 if what == "actions of one robot" else BATCH)
        scale = np.abs(expected).max()
        assert scale > 0
        np.testing.assert_allclose(found[name][what], expected, atol=1e-5 * scale, err_msg=what)


@pytest.mark.slow(minutes=3)
@pytest.mark.parametrize("name", ON_MESHES)
def test_parameters_and_cache_are_shared(found, name):
    """No device holds all parameters, and each the keys and values of its robots and heads."""
    section = MESHES[name.removesuffix(" of two")]
    mesh = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | section
    if "fsdp" not in section:
        mesh["fsdp"] = 8 // (mesh["data"] * mesh["tensor"])
    total, here = found[name]["bytes"]
    shares = mesh["fsdp"] * mesh["tensor"]
    assert total / shares <= here < 1.7 * total / shares  # norms and biases are on every device
    robots, heads = ROBOTS // (mesh["data"] * mesh["fsdp"]), HEADS // mesh["tensor"]
    assert len(found[name]["cache"]) == 4  # keys and values of two groups of layers
    for shape, held in found[name]["cache"]:
        assert (shape[1], shape[3]) == (ROBOTS, HEADS)
        assert held == (shape[0], robots, shape[2], heads, shape[4])


def test_a_mesh_of_one_device(tmp_path):
    mesh = make_mesh(defaults().mesh.to_dict())
    policy = load_policy(low_rank_run(), mesh=mesh)
    assert policy.mesh is mesh
    images = np.zeros((1, 1, 16, 16, 3), np.uint8)
    np.testing.assert_array_equal(policy.encode(images), load_policy(low_rank_run()).encode(images))

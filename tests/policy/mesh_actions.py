"""What a policy computes on several meshes of all devices, in the processes of one job.

    python -m tests.policy.mesh_actions FILE CHECKPOINT MESH... [--coordinator=HOST:PORT ...]

Each mesh is a name in `MESHES`. The first process writes FILE: name of a mesh -> results.
"""

import argparse
import pickle
from pathlib import Path

import jax
import numpy as np

from imagewam_jax import distributed
from imagewam_jax.config.defaults import defaults
from imagewam_jax.models.imagewam import Context
from imagewam_jax.models.sharding import batch_sharding, make_mesh, replicate
from imagewam_jax.policy.policy import Policy, load_policy
from imagewam_jax.preprocess.inputs import Observations

MESHES = {
    "one": None,
    "fsdp": {},
    "fsdp_tensor": {"tensor": 2},
    "data_fsdp_tensor": {"data": 2, "tensor": 2},
    "data_tensor_context": {"data": 2, "fsdp": 1, "tensor": 2, "context": 2},
    "one_row": {"fsdp": 1, "tensor": 2, "context": 4},  # all devices share what a row needs
}
# Rows that no mesh of eight devices divides evenly.
BATCH = 3
ROBOTS = 8  # of a cache, which every mesh divides


def results(policy: Policy) -> dict[str, np.ndarray]:
    """All that a policy computes, on the same observations in every process."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, len(policy.cameras), 64, 64, 3)).astype(np.uint8)
    state = rng.uniform(0, 0.5, (BATCH, policy.state_dim)).astype(np.float32)
    observations = Observations(images, state, np.zeros(BATCH, np.int32))
    one = jax.tree.map(lambda x: x[:1], observations)
    noise = rng.normal(size=(BATCH, policy.horizon, policy.action_dim)).astype(np.float32)
    latent = rng.normal(size=policy.latent_shape(images)).astype(np.float32)
    return {
        "actions": policy.act(observations, noise),
        "actions of one robot": policy.act(one, noise[:1]),
        "imagined": policy.imagine(observations, latent),
        "attention": policy.attention_on_reference(observations, noise),
        "encoded": policy.encode(images),
        "decoded": policy.decode(latent),
        "seen": policy.seen(images),
    }


def parameter_bytes(policy: Policy) -> tuple[int, int]:
    """The bytes of all parameters, and of those that one device holds."""
    leaves = jax.tree.leaves(policy._model)
    return sum(x.nbytes for x in leaves), sum(x.addressable_shards[0].data.nbytes for x in leaves)


def cache_shapes(policy: Policy) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The shape of each array of a cache, [layer, robot, token, head, channel], and of what one
    device holds of it."""
    sizes = policy._model.config.backbone
    context = Context(
        text=np.zeros((ROBOTS, 6, sizes.text_dim), np.float32),
        text_length=np.full(ROBOTS, 6, np.int32),
        references=np.zeros((ROBOTS, 1, 4, 4, sizes.in_channels), np.float32),
        proprio=np.zeros((ROBOTS, policy.state_dim), np.float32),
    )
    with jax.set_mesh(policy.mesh):
        cache = jax.jit(lambda model, context: model.prefill(context))(
            policy._model, replicate(context, batch_sharding(policy.mesh))
        )
    return [(x.shape, x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(cache.groups)]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("meshes", nargs="+", choices=MESHES)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    given = parser.parse_args()
    distributed.initialize(
        coordinator=given.coordinator, processes=given.processes, process=given.process
    )
    found = {}
    for name in given.meshes:
        section = MESHES[name]
        mesh = None if section is None else make_mesh(defaults().mesh.to_dict() | section)
        policy = load_policy(given.checkpoint, mesh=mesh)
        found[name] = results(policy)
        if mesh is not None:
            found[name] |= {"bytes": parameter_bytes(policy), "cache": cache_shapes(policy)}
    if distributed.is_first():
        given.file.write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    main()

"""What a run says of itself before its first step."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from imagewam_jax.data.loader import Source
from imagewam_jax.training.state import TrainState, whole_policy


def summary(
    state: TrainState, sources: Sequence[Source], config: Mapping[str, Any], mesh: Mesh
) -> str:
    """Parameters by part, samples by dataset, devices by axis of their mesh."""
    anchors = sum(len(source.anchors) for source in sources)
    shares = ", ".join(f"{s.reader.dataset.name} {s.share:.1%}" for s in sources)
    sizes = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in whole_policy(state).items()
    }
    parts = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    fixed = sum(x.size for x in jax.tree.leaves(state.fixed))
    frozen = f", of which {fixed:,} are frozen" if fixed else ""
    shared = ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1)
    epochs = config["train"]["steps"] * config["train"]["batch_size"] / anchors
    return (
        f"parameters: {sum(sizes.values()):,} ({parts}){frozen}\n"
        f"data: {anchors:,} samples, {epochs:.1f} epochs of them ({shares}); "
        f"devices: {jax.device_count()} x {jax.devices()[0].device_kind}"
        f"{f' ({shared})' if shared else ''}"
    )

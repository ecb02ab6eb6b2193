"""Writes a network as a file of the layout in which others have it."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from imagewam_jax.models.parameters import module_tree
from imagewam_jax.weights.io.safetensors_writer import write_safetensors
from imagewam_jax.weights.io.tensors import ArraySource
from imagewam_jax.weights.layouts.layout import Layout
from imagewam_jax.weights.layouts.mapping import to_foreign


def write_original(
    path: Path, layout: Layout, sizes: Any, network: nnx.Module, **more: np.ndarray
) -> None:
    """Writes the tensors of a network of these sizes, and `more` that the layout has besides."""
    tree = jax.tree.map(np.asarray, module_tree(network))
    tensors = to_foreign(layout.rules(sizes), tree) | more
    write_safetensors(path, ArraySource(tensors, str(path)))

"""Weights in a foreign layout that lie beside a recording: are they those of the checkpoint?

They are what the recording was made with, so that a check that fails here says why others do.
"""

import contextlib
from collections.abc import Iterator

from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.cases import gradients, limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output
from imagewam_jax.parity.cases.folder import NORMS, Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded, foreign_view
from imagewam_jax.weights.io.tensors import TensorSource, without
from imagewam_jax.weights.layouts.registry import Layout, recognize


def _recognised(folder: Folder) -> Iterator[tuple[str, Layout, TensorSource]]:
    for name, tensors in folder.files.items():
        if name not in (gradients.FILE, NORMS):  # which have the names of weights
            with contextlib.suppress(ConversionError):  # which say that it is no weights
                yield name, *recognize(tensors, tensors.file)


def _find(folder: Folder) -> Tensors | None:
    return next((folder.files[name] for name, *_ in _recognised(folder)), None)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """As they are, and LoRA factors merged."""
    for file, layout, tensors in _recognised(folder):
        if layout.component not in loaded:
            yield NotChecked(file, f"it is a {layout.component}, of which the checkpoint has none")
            continue
        try:
            source = layout.source(without(tensors, layout.carried), folder.config, None)
        except ConversionError as error:
            yield NotChecked(file, str(error))
            continue
        rules = layout.rules(loaded.config(layout.component))
        ours = foreign_view(rules, loaded.tree(layout.component), str(loaded.path))
        for name in (name for name in ours.specs if name in source.specs):
            expected = source.read(name)
            yield Output(name, ours.read(name), limits.ROUNDING, file=file, expected=expected)


KIND = Kind(
    name="weights",
    part="",  # of whichever they are
    file="",
    find=_find,
    outputs=_outputs,
    counted=True,
)

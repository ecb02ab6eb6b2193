"""Weights in a foreign layout that lie beside a recording: does the checkpoint have the same?

The recording was made with them, so that a check that fails here says why others fail. There are
those of whole parts, and the first weights that the official script makes for an action expert.
"""

import contextlib
from collections.abc import Iterator

from imagewam_jax.errors import ConversionError
from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output
from imagewam_jax.parity.cases.folder import NORMS, Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded, foreign_view
from imagewam_jax.parity.cases.training import GRADIENTS_FILE
from imagewam_jax.weights.io.tensors import TensorSource, without
from imagewam_jax.weights.layouts.action_init import FRESH
from imagewam_jax.weights.layouts.families import FAMILIES, family_of
from imagewam_jax.weights.layouts.metadata import find, find_or
from imagewam_jax.weights.layouts.registry import Layout, recognize

EXPERT_PREFIX = "action_init_"  # a file's name is this and the name of its settings


def _recognized(folder: Folder) -> Iterator[tuple[str, Layout, TensorSource]]:
    for name, tensors in folder.files.items():
        if name not in (GRADIENTS_FILE, NORMS):  # whose names are those of weights
            with contextlib.suppress(ConversionError):  # it holds no weights
                yield name, *recognize(tensors, tensors.file)


def _find(folder: Folder) -> Tensors | None:
    return next((folder.files[name] for name, *_ in _recognized(folder)), None)


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Each recorded weight; LoRA factors are merged first."""
    for file, layout, tensors in _recognized(folder):
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


WEIGHTS = Kind(
    name="weights",
    part="",  # told by the weights themselves
    file="",
    find=_find,
    outputs=_outputs,
    counted=True,
)


def _expert_files(folder: Folder) -> dict[str, Tensors]:
    """The files with first weights of an expert of any family, and nothing else."""
    return {
        name: tensors
        for name, tensors in folder.files.items()
        for family in FAMILIES
        if all(n in tensors for n in family.expert)
        and family.first not in tensors
        and not any(n.startswith(FRESH) for n in tensors)
    }


def _expert_outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Compares the files whose settings are those that the checkpoint's expert was made with."""
    expert, backbone = loaded.config("expert"), loaded.config("backbone")
    family = family_of(backbone)
    rules = [r for r in family.expert_rules(expert, backbone) if not r.name.startswith(FRESH)]
    ours = foreign_view(rules, loaded.tree("expert"), str(loaded.path))
    scaled = find_or(loaded.metadata, family.scaled, "provenance.given.expert_scale")
    for file, tensors in _expert_files(folder).items():
        target = file.removesuffix(".safetensors").removeprefix(EXPERT_PREFIX)
        settings = find(folder.config, f"targets.{target}") or {}
        shapes = {name: spec.shape for name, spec in tensors.specs.items()}
        if loaded.first_expert != "official":
            yield NotChecked(file, f"the checkpoint has the {loaded.first_expert} first weights")
        elif shapes != {name: spec.shape for name, spec in ours.specs.items()}:
            yield NotChecked(file, "of an expert of other sizes")
        elif settings.get("apply_alpha_scaling", family.scaled) is not scaled:
            yield NotChecked(file, f"the checkpoint's are{'' if scaled else ' not'} scaled")
        else:
            for name in ours.specs:
                yield Output(name, ours.read(name), limits.FIRST_WEIGHTS, file=file)


FIRST_EXPERT = Kind(
    name="first weights of an action expert",
    part="expert",
    file="",
    find=lambda folder: next(iter(_expert_files(folder).values()), None),
    outputs=_expert_outputs,
)

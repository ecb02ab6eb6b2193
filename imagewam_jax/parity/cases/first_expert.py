"""First weights of an action expert, as the official script makes them of a transformer."""

from collections.abc import Iterator

from imagewam_jax.parity.cases import limits
from imagewam_jax.parity.cases.base import Kind, NotChecked, Output
from imagewam_jax.parity.cases.folder import Folder, Tensors
from imagewam_jax.parity.cases.loaded import Loaded, foreign_view
from imagewam_jax.weights.layouts.action_init import FRESH
from imagewam_jax.weights.layouts.flux2 import action_expert_rules
from imagewam_jax.weights.layouts.metadata import find

PREFIX = "action_init_"  # of the file's name, before that of its settings
SIGNATURE = ("time_in.in_layer.weight", "single_blocks.0.linear1.weight")
ELSEWHERE = ("img_in.weight", *FRESH)  # what a transformer or a whole expert has besides


def _files(folder: Folder) -> dict[str, Tensors]:
    return {
        name: tensors
        for name, tensors in folder.files.items()
        if all(n in tensors for n in SIGNATURE)
        and not any(n.startswith(ELSEWHERE) for n in tensors)
    }


def _outputs(loaded: Loaded, folder: Folder) -> Iterator[Output | NotChecked]:
    """Of the recorded settings, those that the checkpoint's expert was made with."""
    expert, backbone = loaded.config("expert"), loaded.config("backbone")
    rules = [r for r in action_expert_rules(expert, backbone) if not r.name.startswith(FRESH)]
    ours = foreign_view(rules, loaded.tree("expert"), str(loaded.path))
    scaled = find(loaded.metadata, "provenance.given.expert_scale") is not False
    for file, tensors in _files(folder).items():
        target = file.removesuffix(".safetensors").removeprefix(PREFIX)
        settings = find(folder.config, f"targets.{target}") or {}
        shapes = {name: spec.shape for name, spec in tensors.specs.items()}
        if loaded.first_expert != "official":
            yield NotChecked(file, f"the checkpoint has the {loaded.first_expert} first weights")
        elif shapes != {name: spec.shape for name, spec in ours.specs.items()}:
            yield NotChecked(file, "of an expert of other sizes")
        elif settings.get("apply_alpha_scaling", True) is not scaled:
            yield NotChecked(file, f"the checkpoint's are{'' if scaled else ' not'} scaled")
        else:
            for name in ours.specs:
                yield Output(name, ours.read(name), limits.FIRST_WEIGHTS, file=file)


KIND = Kind(
    name="first weights of an action expert",
    part="expert",
    file="",
    find=lambda folder: next(iter(_files(folder).values()), None),
    outputs=_outputs,
)

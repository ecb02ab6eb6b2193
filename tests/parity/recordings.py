"""Converted checkpoints of the recorded cases, copies of the cases to break, and what a report
says."""

import importlib.util
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from imagewam_jax.parity.verify import Report
from imagewam_jax.weights.convert import convert
from tests.goldens import golden
from tests.shared_folder import shared

# The file that the official code wrote; without PyTorch, one with the same tensors.
MODEL = "model.pt" if importlib.util.find_spec("torch") else "model.safetensors"
AUTOENCODER = "flux2_autoencoder/weights.safetensors"
TRANSFORMER = "flux2_transformer/weights.safetensors"
FIRST = {"expert": "official"}

# Checkpoints by name: the weights that they are of, and how they are converted.
SOURCES = {
    "imagewam_flux2": ([f"imagewam_flux2/{MODEL}", AUTOENCODER], {}),
    "imagewam_flux2_noproprio": ([f"imagewam_flux2_noproprio/{MODEL}", AUTOENCODER], {}),
    "imagewam_omnigen2": ([f"imagewam_omnigen2/{MODEL}", "imagewam_omnigen2/vae.safetensors"], {}),
    "imagewam_ovis_u1": ([f"imagewam_ovis_u1/{MODEL}", "imagewam_ovis_u1/vae.safetensors"], {}),
    "omnigen2_alone": ([f"imagewam_omnigen2/{MODEL}"], {}),
    "policy_alone": ([f"imagewam_flux2_noproprio/{MODEL}"], {}),
    "flux2_transformer": ([TRANSFORMER], {}),
    "bfloat16": ([TRANSFORMER], {"dtype": "bfloat16"}),
    "flux2_autoencoder": ([AUTOENCODER], {}),
    "text_qwen3": (["text_qwen3/weights.safetensors"], {}),
    "lora": (["lora/lora_unmerged.safetensors"], {}),
    "lora_alpha": (["lora_alpha/lora_unmerged.safetensors"], {}),
}


def converted(name: str) -> Path:
    """The checkpoint of this name, which tests must not change."""
    sources, options = SOURCES[name]
    files = [golden(Path(source).parent.name) / Path(source).name for source in sources]
    return shared(f"converted/{name}", lambda folder: convert(files, folder, **options))


def copy_of(case: str, folder: Path, *, without: tuple[str, ...] = ()) -> Path:
    """A recorded case that can be changed, without some of its files."""
    shutil.copytree(golden(case), folder, ignore=lambda _, names: {*names} & {*without})
    return folder


def edit(path: Path, change: Callable[[dict[str, np.ndarray]], dict | None]) -> None:
    """Changes the tensors of a safetensors file, in place or to those that are returned."""
    tensors = load_file(path)
    changed = change(tensors)
    save_file(tensors if changed is None else changed, path)


# Settings that change no number, or that show only in widths made from them.
NOT_KEPT = ("axes_lens", "multiple_of")


def assert_holds_the_same(official: Path, ours: Path) -> None:
    """Our recording has the tensors of an official one, under the same names, in the same types and
    numbers of axes, and the same settings."""
    names = {path.name for path in official.iterdir()} & {path.name for path in ours.iterdir()}
    assert names >= {"config.json"} and any(name.endswith(".safetensors") for name in names)
    for file in sorted(name for name in names if name.endswith(".safetensors")):
        theirs, found = load_file(official / file), load_file(ours / file)
        if file == "grads.safetensors":  # theirs are some, ours all
            assert theirs.keys() < found.keys()
        else:
            assert _without_other_functions(theirs) == found.keys(), file
        for name in theirs.keys() & found.keys():
            assert theirs[name].dtype == found[name].dtype, name
            assert theirs[name].ndim == found[name].ndim, name
    settings, recorded = (json.loads((f / "config.json").read_text()) for f in (official, ours))
    sections = ("flux2_params", "transformer_config", "yak_config", "action_dit_config")
    for name in (*sections, "schedulers", "loss", "stack"):
        expected, found = settings.get(name), recorded.get(name)
        for key in ("use_gradient_checkpointing", *NOT_KEPT) if name in sections else ():
            for section in (expected, found):
                (section or {}).pop(key, None)
        assert found == expected


def _without_other_functions(tensors: dict[str, np.ndarray]) -> set[str]:
    """The names of what an official recording has of functions that ours has."""
    other = (
        "kvref.",
        "pred_kv",
        "attention_mask_",
        "native_forward_two",
        "native_second",
        "infer_video.eps_vae",
    )
    states = {f"hidden_states.{n}" for n in (1, 2, 28)}
    masks = set() if "input_ids" in tensors else {"attention_mask"}  # of tokens, or over queries
    return {n for n in tensors if not n.startswith(other)} - states - masks


def recorded_names(case: str, file: str) -> set[str]:
    """The tensors of an official recording: `file: name`."""
    return {f"{file}: {name}" for name in load_file(golden(case) / file)}


def without(names: set[str], *patterns: str) -> set[str]:
    """Names of `file: name` whose last part fits no pattern."""
    pattern = re.compile("|".join(f".*: ({p})" for p in patterns))
    return {name for name in names if not pattern.fullmatch(name)}


def names_of(report: Report, passed: bool = True) -> set[str]:
    """The tensors whose checks passed, or did not: `file: name`."""
    return {f"{check.file}: {check.name}" for check in report.checks if check.passed is passed}


def reasons(report: Report) -> dict[str, str]:
    """Why things were not checked."""
    return {n.what: n.why for n in report.not_checked}

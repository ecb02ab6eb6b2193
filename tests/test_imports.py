"""Imports point one way, and nothing in the package needs TensorFlow or PyTorch."""

import ast
import graphlib
from pathlib import Path

import pytest

import imagewam_jax

PACKAGE = Path(imagewam_jax.__file__).parent
# The rooms of the package, and of `data`, from the ground up: each imports from those above it in
# this list alone, and from those only that its line names.
ROOMS = {
    "errors": "",
    "paths": "errors",
    "files": "errors",
    "storage": "errors paths files",
    "distributed": "errors",
    "html": "",
    "wire": "errors",
    "client": "errors wire",
    "models": "errors",
    "config": "errors paths models",
    "preprocess": "errors files config models",
    "checkpoints": "errors storage config models preprocess",
    "text": "errors files storage config models checkpoints",
    "data": "errors files storage html config preprocess",
    "policy": "errors config models preprocess checkpoints text",
    "weights": "errors files storage config models preprocess checkpoints text",
    "parity": "errors files storage config models checkpoints weights",
    "training": "errors files storage distributed config models preprocess checkpoints text data",
    "evaluation": "errors files storage distributed html wire client config models preprocess "
    "checkpoints data policy",
    "serving": "errors files html wire preprocess checkpoints data policy",
    "tpu_plans": "errors config models preprocess checkpoints policy training",
    "preflight": "errors files storage config models preprocess checkpoints text data training "
    "evaluation",
    "cli": "errors paths storage distributed config preprocess text data weights parity training "
    "evaluation serving tpu_plans preflight",
}
DATA_ROOMS = {
    "dataset_spec": "",
    "index": "",
    "transforms": "dataset_spec index",
    "registry": "dataset_spec transforms",
    "loading": "dataset_spec index transforms",
    "datasets": "dataset_spec index transforms registry loading",
    "statistics": "dataset_spec index transforms loading datasets",
    "tools": "dataset_spec index transforms registry loading datasets statistics",
}
FORBIDDEN = {"tensorflow", "tensorflow_datasets", "torch", "torchvision"}
# Reading and writing `.pt` files needs PyTorch; it is imported when one is opened.
# Writing RLDS needs TensorFlow; it is imported where an import from LeRobot, or a process that ends
# with it, writes recorded rollouts.
EXCEPTIONS = {
    "weights/io/torch_files.py": {"torch"},
    "data/tools/lerobot/features.py": {"tensorflow_datasets"},
    "data/tools/rlds_shards.py": {"tensorflow", "tensorflow_datasets"},
    "data/tools/rollouts.py": {"tensorflow_datasets"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(source: str, package: str) -> set[str]:
    """Dotted names of all imports in a file of `package`, those inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*parents, *([node.module] if node.module else [])])
            base = base if node.level else node.module
            names |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) == "import_module":
            names |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return names


def modules_of(path: Path) -> set[str]:
    """The modules of the package that a file imports, as dotted names below the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    package = ".".join(["imagewam_jax", *parts[:-1]])
    names = imported(path.read_text(), package)
    return {module_named(name) for name in names if name.startswith("imagewam_jax.")} - {""}


def module_named(name: str) -> str:
    """The module that a dotted name is, or that it is something in."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
GRAPH = {module: modules_of(path) - {module} for module, path in MODULES.items()}


def crossings(depth: int, below: str = "") -> dict[tuple[str, str], str]:
    """The rooms at a depth of the tree that import each other, each pair with an example."""
    found = {}
    for module, others in GRAPH.items():
        for other in others:
            if not (module.startswith(below) and other.startswith(below)):
                continue
            pair = tuple(([*name.split("."), ""])[depth] for name in (module, other))
            if pair[0] != pair[1] and all(pair):
                found[pair] = f"{module} imports {other}"
    return found


@pytest.mark.parametrize(
    ("rooms", "depth", "below"), [(ROOMS, 0, ""), (DATA_ROOMS, 1, "data.")], ids=["package", "data"]
)
def test_rooms_import_one_way(rooms, depth, below):
    there = {([*m.split("."), ""])[depth] for m in MODULES if m.startswith(below)} - {""}
    assert there == set(rooms)
    order = list(rooms)
    for room, allowed in rooms.items():
        assert all(order.index(other) < order.index(room) for other in allowed.split()), room
    for (room, other), example in crossings(depth, below).items():
        assert other in rooms[room].split(), example


def test_no_module_imports_itself_by_way_of_others():
    sorter = graphlib.TopologicalSorter(GRAPH)
    sorter.prepare()  # CycleError names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_neither_tensorflow_nor_pytorch_is_imported(path):
    names = imported(path.read_text(), "imagewam_jax")
    allowed = EXCEPTIONS.get(path.relative_to(PACKAGE).as_posix(), set())
    assert not {name.split(".")[0] for name in names} & FORBIDDEN - allowed


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import imagewam_jax.training.train", {"imagewam_jax.training.train"}),
        ("from imagewam_jax.training import train", {"imagewam_jax.training.train"}),
        ("from imagewam_jax import training", {"imagewam_jax.training"}),
        ("from ..training import train", {"imagewam_jax.training.train"}),
        ("from .. import training", {"imagewam_jax.training"}),
        ("def f():\n    from imagewam_jax.training.train import train", None),
        ("from . import datasets", {"imagewam_jax.data.datasets"}),
        ("import jax.numpy as jnp", {"jax.numpy"}),
    ],
)
def test_every_way_to_import_is_seen(source, expected):
    expected = {"imagewam_jax.training.train.train"} if expected is None else expected
    assert imported(source, "imagewam_jax.data") == expected

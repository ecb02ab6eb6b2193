"""Imports point one way, and nothing in the package needs TensorFlow or PyTorch."""

import ast
from pathlib import Path

import pytest

import imagewam_jax

PACKAGE = Path(imagewam_jax.__file__).parent
# Each room, and the other rooms that it may import from.
ALLOWED = {
    "models": set(),
    "pages": set(),
    "data": {"models", "pages"},
    "conversion": {"models"},
    "policies": {"data", "conversion", "models"},
    "training": {"policies", "data", "conversion", "models"},
    "evaluation": {"policies", "data", "conversion", "models", "pages"},
    "exchange": {"policies", "data", "conversion", "models"},
    "aot": {"training", "policies", "data", "conversion", "models"},
    "cli": {
        "training",
        "evaluation",
        "exchange",
        "aot",
        "policies",
        "data",
        "conversion",
        "models",
    },
}
FORBIDDEN = {"tensorflow", "tensorflow_datasets", "torch", "torchvision"}
# Reading and writing `.pt` files needs PyTorch; it is imported when one is opened.
# Writing RLDS needs TensorFlow; it is imported where an import from LeRobot writes it.
EXCEPTIONS = {
    "conversion/torch_files.py": {"torch"},
    "data/lerobot/shards.py": {"tensorflow", "tensorflow_datasets"},
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


def rooms(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {part[1] for part in parts if part[0] == "imagewam_jax" and len(part) > 1}


def test_every_room_has_a_rule():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES}
    assert found - {"__init__"} <= set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    parts = path.relative_to(PACKAGE).parts
    room = parts[0].removesuffix(".py")
    package = ".".join(["imagewam_jax", *parts[:-1]])
    names = imported(path.read_text(), package)
    allowed = EXCEPTIONS.get(path.relative_to(PACKAGE).as_posix(), set())
    assert not {name.split(".")[0] for name in names} & FORBIDDEN - allowed
    upward = rooms(names) - {room} - ALLOWED.get(room, set())
    assert not upward, f"{path} imports from {sorted(upward)}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import imagewam_jax.training.loop", {"training"}),
        ("from imagewam_jax.training import loop", {"training"}),
        ("from imagewam_jax import training", {"training"}),
        ("from ..training import loop", {"training"}),
        ("from .. import training", {"training"}),
        ("def f():\n    from imagewam_jax.training.loop import train", {"training"}),
        ("from . import samples", {"data"}),
        ("import jax.numpy as jnp", set()),
    ],
)
def test_every_way_to_import_is_seen(source, expected):
    assert rooms(imported(source, "imagewam_jax.data")) == expected

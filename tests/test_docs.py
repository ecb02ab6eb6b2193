"""What README and docs name exists: links, files, modules, and the rooms of the architecture."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.test_imports import DATA_ROOMS, ROOMS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "imagewam_jax"
# Where the project's own code is.
FOLDERS = ("imagewam_jax", "configs", "data", "launch", "benchmarks", "tiny_networks", "tests")
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "launch").glob("**/README.md"),
    ROOT / "benchmarks" / "README.md",
    ROOT / "data" / "README.md",
]
FILES = [
    *PAGES,
    *(
        path
        for folder in (
            "imagewam_jax",
            "configs",
            "data",
            "launch",
            "benchmarks",
            "tiny_networks",
            "tests",
        )
        for suffix in ("py", "sh", "sbatch")
        for path in sorted((ROOT / folder).rglob(f"*.{suffix}"))
    ),
]
# Names of files that the reader makes.
THE_READERS = {"configs/mine.py"}
NAMED_PATH = re.compile(r"(?<![\w/.$}~-])((?:[\w-]+/)+(?:[\w-]+\.(?:py|sh|sbatch|md))?)(?![\w*<])")
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_every_relative_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([^()\s]+)\)", page.read_text()):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_every_path_that_is_named_exists(page):
    if page.parent.name == "spec":
        return  # the paths there are those of the official code
    # `folder/file.py` or `folder/`, below the root, the page's folder or the package.
    named = NAMED_PATH.findall(page.read_text())
    tops = {path.name for base in (ROOT, PACKAGE) for path in base.iterdir()}
    for name in set(named) - THE_READERS:
        bases = (ROOT, page.parent, PACKAGE)
        if name.split("/")[0] in tops or name.endswith((".py", ".sh", ".md")):
            assert any((base / name).exists() for base in bases), name


@every_page
def test_every_import_of_an_example_works(page):
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("imagewam_jax"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), node.module


def test_every_module_that_is_named_exists():
    """A dotted name of the package, in comments and docstrings too, is a module or in one."""
    for path in FILES:
        for dotted in re.findall(r"\bimagewam_jax((?:\.[a-zA-Z]\w*)+)", path.read_text()):
            module, names = PACKAGE, dotted[1:].split(".")
            while names and ((module / names[0]).is_dir() or (module / f"{names[0]}.py").is_file()):
                module /= names.pop(0)
            source = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
            found = not names or re.search(rf"\b{names[0]}\b", source.read_text())
            assert found, f"{path}: imagewam_jax{dotted}"


@pytest.mark.parametrize("rooms", [ROOMS, DATA_ROOMS], ids=["package", "data"])
def test_the_architecture_has_every_room_and_what_it_imports(rooms):
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| ([\w, ]*?) ?\|$", ARCHITECTURE, re.MULTILINE))
    assert {room: table.get(room) for room in rooms} == {
        room: ", ".join(imports.split()) for room, imports in rooms.items()
    }


def test_the_picture_has_every_room():
    names = re.findall(r'class="name".*?>(\w+)<', (ROOT / "docs" / "rooms.svg").read_text())
    assert sorted(names) == sorted(ROOMS)

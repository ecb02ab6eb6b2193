"""Settings that hold for every test, and a disk that tests can fill."""

import collections
import os
import subprocess
import sys

import pytest

from tests import array_annotations, shared_folder

os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the suite's time is compiling tiny models. Machine code that is not optimised is as right
# and takes half the time to make, and what one process has compiled, the others and those that they
# start find in a folder that lives as long as the test run.
_UNOPTIMISED = "--xla_backend_optimization_level=0"
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_flags = os.environ.get("XLA_FLAGS", "").split()
if _UNOPTIMISED not in _flags:
    os.environ["XLA_FLAGS"] = " ".join([*_flags, _UNOPTIMISED])
if _CACHE not in os.environ:
    os.environ[_CACHE] = str(shared_folder.begin() / "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

_MANY_MAPPINGS, _VERY_MANY_MAPPINGS = 10_000, 30_000

array_annotations.install()


def pytest_collection_modifyitems(items):
    """Files that take minutes, `slow(minutes=...)`, begin first: at the end, one of them would keep
    one process busy and the others waiting."""
    minutes: dict = collections.defaultdict(int)
    for item in items:
        for mark in item.iter_markers("slow"):
            minutes[item.path] = max(minutes[item.path], mark.kwargs.get("minutes", 0))
    items.sort(key=lambda item: -minutes[item.path])


def pytest_runtest_teardown(item, nextitem):
    """Forget what JAX has compiled if its code takes many mappings of memory: at the end of a file,
    or of a test when there are very many.

    Linux allows 65,530 of them to a process, a compiled program takes some, and XLA crashes where
    there are no more.
    """
    is_last = nextitem is None or nextitem.path != item.path
    limit = _MANY_MAPPINGS if is_last else _VERY_MANY_MAPPINGS
    if "jax" in sys.modules and _memory_mappings() > limit:
        sys.modules["jax"].clear_caches()


def _memory_mappings() -> int:
    try:
        with open("/proc/self/maps", "rb") as file:
            return sum(1 for _ in file)
    except FileNotFoundError:  # not Linux, and its limit is another
        return 0


def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        shared_folder.end()


@pytest.fixture
def small_disk(request, tmp_path):
    """A file system of 4 MB, or of the size that a test is parametrized with."""
    if os.getuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={getattr(request, 'param', '4m')}",
        "tmpfs",
        str(folder),
    ]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def bucket():
    """A bucket of object storage, one for all tests of this process."""
    pytest.importorskip("gcp_storage_emulator")
    from tests.buckets import a_bucket

    with a_bucket() as made:
        yield made

"""Where the tests find the recorded outputs of the official code.

They are not part of the project: set IMAGEWAM_GOLDENS to their folder, or keep them in
`shared/goldens` beside the checkout. Tests that need them are skipped when they are absent.
"""

import os
from pathlib import Path

import pytest

_DEFAULT = Path(__file__).resolve().parents[2] / "shared" / "goldens"


def golden(case: str) -> Path:
    """The folder of one recorded case; skips the calling test when it is not there."""
    root = Path(os.environ.get("IMAGEWAM_GOLDENS", _DEFAULT))
    folder = root / case
    if not folder.is_dir():
        pytest.skip(f"recorded outputs not found: {folder} (set IMAGEWAM_GOLDENS)")
    return folder

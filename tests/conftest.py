"""Settings that hold for every test."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

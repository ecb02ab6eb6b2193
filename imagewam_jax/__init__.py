"""ImageWAM-JAX: image-editing world action models in JAX."""

__version__ = "0.1.0"

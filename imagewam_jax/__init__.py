"""ImageWAM-JAX: image-editing world action models in JAX."""

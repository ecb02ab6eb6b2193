"""Pure mathematics on arrays: no files, datasets, clocks, or meshes by name."""

"""Foreign weight layouts: one file each, strict, and written as tables."""

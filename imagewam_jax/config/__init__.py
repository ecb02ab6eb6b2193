"""Configs: every field and its meaning, the official recipe, files and overrides, checks."""

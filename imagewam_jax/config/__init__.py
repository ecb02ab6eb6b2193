"""Configs: every field and its meaning, files and overrides, official recipes, checks."""

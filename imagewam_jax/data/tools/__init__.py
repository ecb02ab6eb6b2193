"""What is done with a dataset besides training on it: check, show, list, import."""

"""Tools for datasets: check, show, list, import."""

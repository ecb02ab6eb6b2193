"""Plans: what programs would take on TPU slices, compiled without having them."""

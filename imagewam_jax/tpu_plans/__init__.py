"""Plans: programs compiled for accelerators that are not here, and what they would take."""

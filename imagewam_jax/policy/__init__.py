"""A trained policy in the units of the world."""

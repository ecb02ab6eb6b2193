"""A policy behind a socket: requests of several robots, checked, batched, answered, and counted."""

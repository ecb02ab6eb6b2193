"""The robot's side of a policy server; it needs NumPy, msgpack and websockets, and no JAX."""

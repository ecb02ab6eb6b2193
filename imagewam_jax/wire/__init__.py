"""What a policy server and its clients say to each other; it needs neither JAX nor a policy."""

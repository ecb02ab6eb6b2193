"""Statistics of actions and states: exact ones, and those that the official code computes."""

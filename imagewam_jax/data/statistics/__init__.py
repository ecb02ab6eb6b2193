"""Statistics of actions and states: exact ones, and those of the official code."""

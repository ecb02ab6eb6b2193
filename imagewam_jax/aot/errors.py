"""What a user can do something about."""


class PlanError(Exception):
    """A program cannot be compiled for a topology; the message says why."""

"""What a user can get wrong about configs and checkpoints."""


class ConfigError(ValueError):
    """A config has a field or a value that does not fit; the message names it."""


class MissingWeights(ConfigError):
    """A part that a config names has weights, and the config does not say where."""


class CheckpointError(Exception):
    """A checkpoint is missing, of something else, or cannot be written."""


class Unreadable(CheckpointError):
    """A checkpoint that is there is damaged."""


class HostsError(Exception):
    """Processes that train together lost one of them."""

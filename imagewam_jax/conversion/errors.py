"""What can be wrong with foreign weights."""


class ConversionError(ValueError):
    """Weights that are not what they should be; the message names the file and the tensor."""

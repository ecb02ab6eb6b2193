"""The errors of the input pipeline. Each names the file or key, what was expected and what is."""


class DataError(ValueError):
    """A dataset, an index, statistics or a text table that cannot be used as asked."""


class BadFrameError(DataError):
    """One stored image that cannot be read: wrong bytes, not a JPEG, or another size."""

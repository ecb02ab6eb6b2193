"""One server that the tests of this folder share, and must leave as it was."""

import pytest

from tests.serving.robots import served, tiny_actor


@pytest.fixture(scope="module")
def tiny():
    return tiny_actor()


@pytest.fixture(scope="module")
def server(tiny):
    with served(*tiny) as running:
        yield running


@pytest.fixture(scope="module")
def policy(tiny):
    """The same policy, asked without a server."""
    return tiny[0]._policy

"""What tests of this folder share: a server, which they must leave as it was, and a slow policy."""

import time

import pytest

from imagewam_jax.serving.acting import Actor
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


class Slowed(Actor):
    """A policy whose `act` takes `seconds` longer."""

    seconds = 0.0

    def act(self, rows, size):
        time.sleep(self.seconds)
        return super().act(rows, size)


@pytest.fixture
def slowed(tiny):
    actor, contract = tiny
    return Slowed(actor._policy, contract), contract

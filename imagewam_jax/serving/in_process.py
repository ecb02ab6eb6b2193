"""A policy in this process as a source of action chunks, with the checks of a server."""

from collections.abc import Mapping
from typing import Any

from imagewam_jax.errors import InputError, RequestRefused
from imagewam_jax.serving.acting import Actor, NotFinite
from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.requests import read_request
from imagewam_jax.serving.sessions import Sessions
from imagewam_jax.wire import protocol


class InProcessPolicy:
    """Answers requests as a server does that has one robot: `client.source.ChunkSource`."""

    def __init__(self, actor: Actor, contract: Contract, seed: int = 0):
        """seed: of the noise, where a request has none."""
        self.metadata = contract.metadata
        self._actor, self._contract, self._seed = actor, contract, seed
        self._sessions = Sessions("in process", "")

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A reply. RequestRefused: the request does not fit the policy, or its actions are not
        finite."""
        try:
            read = read_request(request, self._contract)
            session = self._sessions[read.session]
            if (reply := session.begin(read)) is not None:
                return reply
            if not self._actor.check_prompt(read.prompt):
                self._actor.encode(read.prompt)
            row = session.row(read, self._seed)
        except InputError as error:
            raise RequestRefused(f"{protocol.INVALID}: {error}") from error
        (chunk,) = self._actor.act([row], 1)
        if isinstance(chunk, NotFinite):
            raise RequestRefused(f"{protocol.INTERNAL} {chunk}")
        return session.answer(row, chunk)

    def reset(self) -> None:
        """The robot begins another episode."""
        for session in self._sessions:
            session.reset()

    def close(self) -> None:
        """Nothing is to be ended."""

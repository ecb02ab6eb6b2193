"""What gives a robot its action chunks: a policy server, or a policy in this process."""

from collections.abc import Mapping
from typing import Any, Protocol


class ChunkSource(Protocol):
    """Answers one request after the other, as `docs/spec/serving.md, 2` has them.

    metadata: what a request must hold, and what comes back.
    """

    metadata: Mapping[str, Any]

    def infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A reply, with float32 `actions` [horizon, action dimension] in real units.

        RequestRefused: the request does not fit the policy, or the policy failed.
        ServingError: there was no answer.
        """
        ...

    def reset(self) -> None:
        """The robot begins another episode."""
        ...

    def close(self) -> None: ...

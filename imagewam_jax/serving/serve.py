"""From a policy to a server that answers robots until it is told to stop."""

import asyncio
from collections.abc import Callable

from imagewam_jax.serving.acting import Actor
from imagewam_jax.serving.contract import Contract
from imagewam_jax.serving.server import PolicyServer, listen
from imagewam_jax.serving.settings import Settings


def say(line: str) -> None:
    """A line of progress, at once even where the output is a file."""
    print(line, flush=True)


def serve_until_told(load: Callable[[], tuple[Actor, Contract]], settings: Settings) -> None:
    """Listens, loads a policy, compiles it, and answers robots until SIGTERM or Ctrl-C.

    It listens first, so that a port that is taken is told at once, and robots that connect while
    the policy is loaded and compiled wait. ServingError: it cannot listen there. UserError: the
    policy cannot be loaded.
    """
    with listen(settings.host, settings.port) as listening:
        host, port = listening.getsockname()[:2]
        scheme = "ws" if settings.certificate is None else "wss"
        say(f"listening on {scheme}://{f'[{host}]' if ':' in host else host}:{port}")
        actor, contract = load()
        asyncio.run(_serve(actor, contract, settings, listening))


async def _serve(actor, contract, settings, listening) -> None:
    server = PolicyServer(actor, contract, settings)
    server.handle_signals()
    await server.run(listening, say)
    say("stopped")

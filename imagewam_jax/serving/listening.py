"""The address of a server. Nothing here imports JAX, so that a server can be reached at once."""

import socket

from imagewam_jax.errors import ServingError


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. ServingError: the address is taken, or not of this machine."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, OverflowError) as error:
        raise ServingError(f"cannot listen on {host}, port {port}: {error}") from error


def url(listening: socket.socket, secure: bool) -> str:
    """The address that clients connect to."""
    host, port = listening.getsockname()[:2]
    return f"{'wss' if secure else 'ws'}://{f'[{host}]' if ':' in host else host}:{port}"

"""Who may talk to a server: named tokens, and TLS."""

import base64
import binascii
import hmac
import ipaddress
import os
import ssl
from collections.abc import Mapping
from pathlib import Path

from imagewam_jax.errors import ConfigError
from imagewam_jax.wire.protocol import API_KEY

TOKENS_VARIABLE = "IMAGEWAM_SERVE_TOKENS"
_SHORTEST = 16  # characters of a token


def read_tokens(path: Path | None) -> dict[str, str]:
    """Name -> token: a line `name token` for each, of a file, or without one of the environment
    variable TOKENS_VARIABLE; none without either.

    ConfigError: the file cannot be read, or a line is not that.
    """
    if path is None:
        where, text = TOKENS_VARIABLE, os.environ.get(TOKENS_VARIABLE, "")
    else:
        try:
            where, text = str(path), path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--tokens {path}: cannot be read: {error}") from error
    tokens: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 2 or len(words[1]) < _SHORTEST or words[0] in tokens:
            raise ConfigError(
                f"{where}, line {number}: expected a name of its own and a token of at least "
                f"{_SHORTEST} characters, such as `robot-1 $(openssl rand -hex 16)`"
            )
        tokens[words[0]] = words[1]
    if path is not None and not tokens:
        raise ConfigError(f"--tokens {path}: no token in it")
    return tokens


def client_of(authorization: str | None, tokens: Mapping[str, str]) -> str | None:
    """The name of the client whose token the header `Authorization` carries; "" if the server has
    no tokens, None if none matches.

    Api-Key and Bearer are followed by the token; Basic, which browsers send, has it as password.
    """
    if not tokens:
        return ""
    scheme, _, given = (authorization or "").partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        try:
            _, _, given = base64.b64decode(given, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return None
    elif scheme.lower() not in (API_KEY.lower(), "bearer"):
        return None
    found = None
    for name, token in tokens.items():  # all of them, so that the time says nothing
        if hmac.compare_digest(token.encode(), given.encode()):
            found = name
    return found


def check_exposure(host: str, tokens: Mapping[str, str], insecure: bool) -> None:
    """ConfigError: other machines could reach a server that asks nobody for a token."""
    if tokens or insecure or is_loopback(host):
        return
    raise ConfigError(
        f"--host {host}: without tokens only this machine may connect (--host 127.0.0.1). Give "
        "--tokens FILE, or --insecure where everybody who can connect may"
    )


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def tls_context(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    """TLS 1.2 or newer with a certificate and its key; None without them.

    ConfigError: one is missing, or they are no pair.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("--certificate and --private-key: give both, or neither")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Takes a certificate for the connections that come. ConfigError: it cannot be used."""
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"--certificate {certificate}, --private-key {key}: {error}") from error

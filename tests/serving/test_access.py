"""Who may talk to a server: tokens, and TLS that clients can check."""

import base64
import ssl
import urllib.error

import pytest

from imagewam_jax.client.remote import RemotePolicy
from imagewam_jax.errors import ConfigError, ServingError
from imagewam_jax.serving.access import (
    TOKENS_VARIABLE,
    check_exposure,
    client_of,
    read_tokens,
    tls_context,
)
from tests.serving.robots import FAST, Robot, observation, served, write_certificate

TOKEN, OTHER = "0123456789abcdef", "fedcba9876543210"
TOKENS = {"left": TOKEN, "right": OTHER}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (f"Api-Key {TOKEN}", "left"),
        (f"Bearer {OTHER}", "right"),
        (f"bearer  {OTHER} ", "right"),
        (basic("anyone", TOKEN), "left"),
        (basic(TOKEN, ""), None),
        (f"Api-Key {TOKEN}0", None),
        (f"Api-Key {TOKEN[:-1]}", None),
        (f"Token {TOKEN}", None),
        (TOKEN, None),
        ("Api-Key ", None),
        ("Api-Key \xe9", None),
        ("Basic !!!", None),
        ("Basic /w==", None),
        ("", None),
        (None, None),
    ],
)
def test_whose_token_it_is(header, client):
    assert client_of(header, TOKENS) == client
    assert client_of(header, {}) == ""


def test_a_file_of_tokens(tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    path.write_text(f"# ours\nleft {TOKEN}\n\nright  {OTHER}\n")
    assert read_tokens(path) == TOKENS
    assert read_tokens(None) == {}
    monkeypatch.setenv(TOKENS_VARIABLE, f"left {TOKEN}")
    assert read_tokens(None) == {"left": TOKEN}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"left {TOKEN}\n{OTHER}\n", "line 2: expected a name of its own and a token of at least"),
        ("left short", "line 1: expected"),
        (f"left {TOKEN}\nleft {OTHER}", "line 2: expected"),
        ("# nothing\n", "no token in it"),
        (None, "cannot be read"),
    ],
)
def test_what_is_no_file_of_tokens(tmp_path, text, message):
    path = tmp_path / "tokens"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_tokens(path)
    assert TOKEN not in str(error.value)


def test_other_machines_need_a_token():
    for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost"):
        check_exposure(host, {}, insecure=False)
    for host in ("0.0.0.0", "::", "192.168.0.7", "robots.local"):
        with pytest.raises(ConfigError, match=f"--host {host}: without tokens only this machine"):
            check_exposure(host, {}, insecure=False)
        check_exposure(host, TOKENS, insecure=False)
        check_exposure(host, {}, insecure=True)


def test_nobody_without_a_token_sees_anything(tiny):
    """Health alone is for everybody, since who asks for it has no token."""
    with served(*tiny, FAST._replace(tokens=TOKENS, buckets=(1,))) as running:
        for path in ("/", "/metrics", "/other"):
            with pytest.raises(urllib.error.HTTPError) as refused:
                running.get(path)
            assert refused.value.code == 401
            assert refused.value.headers["WWW-Authenticate"].startswith("Basic")
        assert running.get("/healthz") == "OK\n" and running.get("/readyz") == "ready\n"
        for token in (None, TOKEN[:-1]):
            with pytest.raises(Exception, match="401"):
                Robot(running.url, token)
        with Robot(running.url, OTHER) as robot:
            assert robot.ask(observation())["actions"].size
            page = running.get("/", {"Authorization": basic("me", TOKEN)})
        assert "right 127.0.0.1" in page and OTHER not in page
        metrics = running.get("/metrics", {"Authorization": f"Bearer {TOKEN}"})
        assert 'imagewam_rejected_total{reason="token"} 5.0' in metrics


def test_tokens_are_read_again(tiny, tmp_path):
    path = tmp_path / "tokens"
    path.write_text(f"left {TOKEN}\n")
    settings = FAST._replace(tokens=read_tokens(path), tokens_file=path, buckets=(1,))
    with served(*tiny, settings) as running:
        path.write_text(f"right {OTHER}\n")
        running.server.reload()
        with pytest.raises(Exception, match="401"):
            Robot(running.url, TOKEN)
        path.write_text("nonsense\n")
        running.server.reload()  # the ones that were good stay
        with Robot(running.url, OTHER) as robot:
            assert robot.ask(observation())["actions"].size


def test_tls(tiny, tmp_path):
    """A client that does not know the certificate stays away; a new one is taken at a reload."""
    certificate, key = write_certificate(tmp_path, "first")
    settings = FAST._replace(certificate=certificate, key=key, buckets=(1,))
    with served(*tiny, settings) as running:
        knows = ssl.create_default_context(cafile=certificate)
        remote = RemotePolicy(running.url, tls=knows)
        assert remote.infer(observation())["actions"].shape == (4, 4)
        with pytest.raises(ServingError, match="certificate"):
            RemotePolicy(running.url)
        with pytest.raises(ServingError, match="cannot connect"):
            RemotePolicy(f"ws://127.0.0.1:{running.port}", connect_seconds=2.0)
        old = ssl.create_default_context(cafile=certificate)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
        RemotePolicy(running.url, tls=old).close()
        second, second_key = write_certificate(tmp_path, "second")
        second.rename(certificate)
        second_key.rename(key)
        running.server.reload()
        with pytest.raises(ServingError, match="certificate"):
            RemotePolicy(running.url, tls=knows)
        now_knows = ssl.create_default_context(cafile=certificate)
        RemotePolicy(running.url, tls=now_knows).close()
        assert remote.infer(observation())["actions"].shape == (4, 4)  # it is still connected
        remote.close()


def test_half_a_pair(tmp_path):
    certificate, key = write_certificate(tmp_path, "first")
    _, other = write_certificate(tmp_path, "other")
    assert tls_context(None, None) is None
    assert tls_context(certificate, key).minimum_version == ssl.TLSVersion.TLSv1_2
    for pair in ((certificate, None), (None, key)):
        with pytest.raises(ConfigError, match="give both, or neither"):
            tls_context(*pair)
    for pair in ((certificate, other), (certificate, tmp_path / "none")):
        with pytest.raises(ConfigError, match="--private-key"):
            tls_context(*pair)

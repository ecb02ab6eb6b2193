"""What a server answers to plain HTTP: health, metrics, and a page for people."""

import http
import time

import numpy as np
from jaxtyping import Float
from websockets.datastructures import Headers
from websockets.http11 import Response

from imagewam_jax.html.page import Section, image_grid, picture, render_page
from imagewam_jax.serving.sessions import Session
from imagewam_jax.serving.state import State
from imagewam_jax.serving.statistics import STAGES

HEALTH, READY, METRICS, STATUS = "/healthz", "/readyz", "/metrics", "/"
OPEN = (HEALTH, READY)  # nobody needs a token for these
_SHOWN_SESSIONS = 8
_REFRESH_SECONDS = 2
_COLORS = ("#2563eb", "#ea580c", "#16a34a", "#9333ea", "#dc2626", "#0891b2", "#ca8a04", "#4b5563")


def respond(state: State, path: str, method: str) -> Response:
    """The page of a path, without its body if only its head is asked for."""
    if path == HEALTH:
        response = text(http.HTTPStatus.OK, "OK\n")
    elif path == READY:
        ready = state.is_ready
        status = http.HTTPStatus.OK if ready else http.HTTPStatus.SERVICE_UNAVAILABLE
        response = text(status, "ready\n" if ready else "not ready\n")
    elif path == METRICS:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        response = _response(http.HTTPStatus.OK, state.metrics.text(), kind)
    elif path == STATUS:
        kind = "text/html; charset=utf-8"
        response = _response(http.HTTPStatus.OK, status_page(state).encode(), kind)
    else:
        response = text(http.HTTPStatus.NOT_FOUND, "not found\n")
    if method == "HEAD":
        response.body = b""
    return response


def text(status: http.HTTPStatus, body: str) -> Response:
    return _response(status, body.encode(), "text/plain; charset=utf-8")


def unauthorized() -> Response:
    """Asks for a token; a browser asks its user."""
    response = text(http.HTTPStatus.UNAUTHORIZED, "a token is needed\n")
    response.headers["WWW-Authenticate"] = 'Basic realm="imagewam"'
    return response


def _response(status: http.HTTPStatus, body: bytes, kind: str) -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)


def status_page(state: State) -> str:
    """Sessions, rates, latencies, and what each robot saw and was told last."""
    if state.contract is None:
        return render_page("imagewam serve", "loading the policy", [], _REFRESH_SECONDS)
    about = state.contract.metadata
    now = "ready" if state.is_ready else "not ready"
    subtitle = (
        f"{now}, up {time.monotonic() - state.started:.0f} s; policy {about['policy_hash']}, step "
        f"{about['checkpoint_step']}; {about['action_horizon']} actions of {about['action_dim']} "
        "numbers in a chunk"
    )
    sessions = [s for of in list(state.connections.values()) for s in of if s.chunks]
    sessions.sort(key=Session.idle_seconds)
    sections = [
        Section("Sessions", "" if sessions else "Nobody has asked yet.", _table(sessions)),
        Section("Latency of the last requests", table=_latencies(state)),
        *(_last_seen(session, about["action_names"]) for session in sessions[:_SHOWN_SESSIONS]),
    ]
    return render_page("imagewam serve", subtitle, sections, _REFRESH_SECONDS)


def _table(sessions: list[Session]) -> list[list[str]]:
    if not sessions:
        return []
    rows = [["session", "chunks", "chunks per second", "last asked", "instruction"]]
    rows += [
        [s.label, str(s.chunks), f"{s.rate():.1f}", f"{s.idle_seconds():.1f} s ago", s.prompt]
        for s in sessions
    ]
    return rows


def _latencies(state: State) -> list[list[str]]:
    rows = [["stage", "p50 ms", "p95 ms", "p99 ms"]]
    for stage in STAGES:
        if found := state.latencies.percentiles(stage):
            rows.append([stage, *(f"{value:.2f}" for value in found)])
    return rows


def _last_seen(session: Session, names: list[str] | None) -> Section:
    """The images and the chunk of the last request."""
    pictures = [
        picture(image_grid([list(session.images)]), "images"),
        picture(chunk_svg(session.actions), f"actions: {', '.join(names or [])}"),
    ]
    return Section(session.label, session.prompt, pictures=pictures)


def chunk_svg(actions: Float[np.ndarray, "s a"]) -> bytes:
    """A chunk as a drawing: a line for each dimension, over its steps."""
    width, height, margin = 480, 140, 8
    low, high = float(actions.min()), float(actions.max())
    span = high - low or 1.0
    x = np.linspace(margin, width - margin, len(actions))
    y = height - margin - (actions - low) / span * (height - 2 * margin)
    lines = [
        f'<polyline fill="none" stroke="{_COLORS[dim % len(_COLORS)]}" stroke-width="1.5" points="'
        + " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y[:, dim], strict=True))
        + '"/>'
        for dim in range(actions.shape[1])
    ]
    scale = (
        f'<text x="{margin}" y="{margin + 6}" font-size="9">{high:.3g}</text>'
        f'<text x="{margin}" y="{height - 1}" font-size="9">{low:.3g}</text>'
    )
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(lines)}{scale}</svg>'.encode()

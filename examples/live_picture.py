"""What a robot sees and does, as a picture that a browser shows while it happens."""

import io
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

_STEPS = 160  # that the curves show
_CAMERA_HEIGHT, _CURVE_HEIGHT, _LINE_HEIGHT, _MARGIN, _WIDTH = 256, 56, 16, 8, 640
_INK, _MUTED, _CURVE, _SEAM = "#111827", "#9ca3af", "#2563eb", "#ea580c"
_BOUNDARY = b"--frame"


class Trace:
    """The last actions of an episode. names: one for each of their dimensions."""

    def __init__(self, names: tuple[str, ...]):
        self._names = names
        self.clear()

    def clear(self) -> None:
        """Begins another episode."""
        self._actions: list[Float[np.ndarray, " a"]] = []
        self._seams: list[int] = []

    def add(self, action: Float[np.ndarray, " a"], *, is_new_chunk: bool) -> None:
        """The action of the next step, and whether it is the first since a chunk arrived."""
        if is_new_chunk:
            self._seams.append(len(self._actions))
        self._actions.append(np.asarray(action, float))

    def picture(self, images_nhwc: UInt8[np.ndarray, "n h w 3"], lines: list[str]) -> Image.Image:
        """Lines of text, the cameras side by side, and a curve of each dimension, in which the
        arrival of a chunk is a vertical line."""
        cameras = [
            Image.fromarray(image).resize(
                (_CAMERA_HEIGHT * image.shape[1] // image.shape[0], _CAMERA_HEIGHT)
            )
            for image in images_nhwc
        ]
        text_height = _MARGIN + _LINE_HEIGHT * len(lines)
        width = max(_WIDTH, sum(camera.width + _MARGIN for camera in cameras) + _MARGIN)
        height = text_height + _CAMERA_HEIGHT + _MARGIN + _CURVE_HEIGHT * len(self._names)
        canvas = Image.new("RGB", (width, height + _MARGIN), "white")
        draw = ImageDraw.Draw(canvas)
        for number, line in enumerate(lines):
            draw.text((_MARGIN, _MARGIN + number * _LINE_HEIGHT), line, fill=_INK)
        x = _MARGIN
        for camera in cameras:
            canvas.paste(camera, (x, text_height))
            x += camera.width + _MARGIN
        for dim, name in enumerate(self._names):
            top = text_height + _CAMERA_HEIGHT + _MARGIN + dim * _CURVE_HEIGHT
            self._draw_curve(draw, dim, name, (_MARGIN, top, width - _MARGIN, top + _CURVE_HEIGHT))
        return canvas

    def _draw_curve(
        self, draw: ImageDraw.ImageDraw, dim: int, name: str, box: tuple[int, int, int, int]
    ) -> None:
        left, top, right, bottom = box
        bottom -= _MARGIN
        first = max(len(self._actions) - _STEPS, 0)
        values = np.array([action[dim] for action in self._actions[first:]])
        low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
        scale = (bottom - top) / (high - low) if high > low else 0.0
        per_step = (right - left) / _STEPS
        for seam in self._seams:
            if seam >= first:
                x = left + (seam - first) * per_step
                draw.line([(x, top), (x, bottom)], fill=_SEAM)
        points = [(left + i * per_step, bottom - (v - low) * scale) for i, v in enumerate(values)]
        if len(points) > 1:
            draw.line(points, fill=_CURVE, width=2)
        draw.text((left, top), f"{name}  {low:.2f} to {high:.2f}", fill=_MUTED)


class LivePage:
    """A page on this machine that shows the newest picture, for as long as the context lasts."""

    def __init__(self, port: int):
        """port: 0 takes a free one. OSError: it is taken."""
        self._changed = threading.Condition()
        self._jpeg, self._number, self._is_over = b"", 0, False
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path == "/":
                    self._answer("text/html", b"<title>robot</title><img src=stream>")
                elif self.path == "/stream":
                    page._stream(self)
                else:
                    self.send_error(404)

            def _answer(self, kind: str, body: bytes) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Requests are not worth a line."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def show(self, picture: Image.Image) -> None:
        """Replaces the picture; whoever is too slow misses some."""
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=80)
        with self._changed:
            self._jpeg, self._number = file.getvalue(), self._number + 1
            self._changed.notify_all()

    def __enter__(self) -> "LivePage":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._is_over = True
            self._changed.notify_all()
        self._server.shutdown()
        self._server.server_close()

    def _stream(self, handler: BaseHTTPRequestHandler) -> None:
        """One picture after another, in the way that browsers show as a film."""
        handler.send_response(200)
        kind = f"multipart/x-mixed-replace; boundary={_BOUNDARY[2:].decode()}"
        handler.send_header("Content-Type", kind)
        handler.end_headers()
        sent = 0
        try:
            while True:
                with self._changed:
                    while not self._is_over and self._number == sent:
                        self._changed.wait()
                    if self._is_over:
                        return
                    jpeg, sent = self._jpeg, self._number
                head = f"\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                handler.wfile.write(_BOUNDARY + head.encode() + jpeg + b"\r\n")
        except OSError:  # the browser is gone
            return

"""A bucket on this machine: an emulator of Google's storage API behind a proxy, which can be slow
and fail. Both run in a process of their own: `python -m tests.buckets`."""

import contextlib
import http.client
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from imagewam_jax.storage.folders import CACHE

NAME = "imagewam-tests"
# In place of an answer: a connection that ends at once, or in the middle of what it brings.
CUT, HALF = 0, 1
_CONTROL = "/control"


class Bucket:
    """The bucket, as its tests see it."""

    def __init__(self, host: str, cache: str):
        self._host = host
        self.environment = {
            "TENSORSTORE_GCS_HTTP_URL": host,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "token",
            "STORAGE_EMULATOR_HOST": host,  # for gcsfs and Google's client
            CACHE: cache,
        }

    def behave(
        self,
        *,
        seconds: float = 0.0,
        body_seconds: float = 0.0,
        every: int = 1,
        answers: Sequence[int] = (),
    ) -> None:
        """How requests are answered from now on, and counted anew.

        seconds: what each takes longer to begin; body_seconds: and in the middle of its content.
        every, answers: each so many-th has one of these statuses, or is `CUT` or `HALF`, in turn,
        in place of its answer.
        """
        how = {"seconds": seconds, "body_seconds": body_seconds, "every": every}
        self._control({**how, "answers": list(answers)})

    def counts(self) -> tuple[int, int]:
        """How many requests there were since, and how many at a time."""
        return tuple(self._control(None))

    def _control(self, content: Any) -> Any:
        request = urllib.request.Request(self._host + _CONTROL, json.dumps(content).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def address(self, name: str) -> str:
        return f"gs://{NAME}/{name}"

    def put(self, name: str, content: bytes) -> None:
        """Writes an object, in place of what has its name."""
        self._store().write(name, content).result()

    def remove(self, name: str) -> None:
        self._store().write(name, None).result()

    def put_folder(self, folder: Path, name: str) -> str:
        """Writes the files of a folder that are no index, and returns the address."""
        for path in sorted(folder.rglob("*")):
            place = path.relative_to(folder)
            if path.is_file() and place.parts[0] != "imagewam_index":
                self.put(f"{name}/{place.as_posix()}", path.read_bytes())
        return self.address(name)

    @staticmethod
    def _store() -> Any:
        import tensorstore

        return tensorstore.KvStore.open({"driver": "gcs", "bucket": NAME}).result()


@contextlib.contextmanager
def a_bucket() -> Iterator[Bucket]:
    """A bucket of this process and of those that it starts. TensorStore reads the variables once: a
    process has one bucket."""
    port = _free_port()
    command = [sys.executable, "-m", "tests.buckets", str(port)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with (
        tempfile.TemporaryDirectory(prefix="imagewam-cache-") as cache,
        subprocess.Popen(command, **pipes) as process,
    ):
        try:
            assert process.stdout.readline() == b"ready\n"
            bucket = Bucket(f"http://127.0.0.1:{port}", cache)
            os.environ.update(bucket.environment)
            yield bucket
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class _Proxy(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def __init__(self, port: int, emulator: int):
        super().__init__(("127.0.0.1", port), _Handler)
        self.emulator, self.lock = emulator, threading.Lock()
        self.generations: dict[str, str] = {}
        # The emulator answers one after another, and lets no more than five wait.
        self.few = threading.Semaphore(4)
        self.behave({"seconds": 0.0, "body_seconds": 0.0, "every": 1, "answers": []})

    def behave(self, how: dict[str, Any]) -> None:
        self.seconds, self.every = how["seconds"], how["every"]
        self.body_seconds = how["body_seconds"]
        self.answers = itertools.cycle(how["answers"] or [None])
        self.requests = self.now = self.most = 0

    def begin(self) -> int | None:
        """Counts a request, and says what to answer in place of what the emulator would."""
        with self.lock:
            self.requests, self.now = self.requests + 1, self.now + 1
            self.most = max(self.most, self.now)
            return next(self.answers) if self.requests % self.every == 0 else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == _CONTROL:
            how = json.loads(body)
            counts = self.server.behave(how) if how else [self.server.requests, self.server.most]
            self._send(200, {}, json.dumps(counts).encode())
            return
        instead = self.server.begin()
        time.sleep(self.server.seconds)
        self.server.now -= 1
        if instead == CUT:
            self.close_connection = True
        elif instead and instead != HALF:
            self._send(instead, {}, b"{}")
        else:
            self._send(*self._ask(body), broken=instead == HALF)

    do_GET = do_POST = do_PUT = do_DELETE = _answer

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        status, headers, content = self._of_emulator(self.path, body)
        if self.command != "GET":
            self.server.generations.clear()
        elif "alt=media" in self.path and status < 300:
            headers["x-goog-generation"] = self._generation(self.path.partition("?")[0])
        return status, headers, content

    def _generation(self, path: str) -> str:
        """The generation of an object.

        Google's service sends it with the object's bytes. The emulator gives it in the object's
        metadata alone, which are asked for here.
        """
        known = self.server.generations
        if path not in known:
            status, _, about = self._of_emulator(path, b"")
            known[path] = json.loads(about)["generation"] if status == 200 else "0"
        return known[path]

    def _of_emulator(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {name: value for name, value in self.headers.items() if name != "Host"}
        with self.server.few:
            connection = http.client.HTTPConnection("127.0.0.1", self.server.emulator, timeout=60)
            connection.request(self.command, path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            connection.close()
        return answer.status, dict(answer.getheaders()), content

    def _send(
        self, status: int, headers: dict[str, str], content: bytes, *, broken: bool = False
    ) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        half = len(content) // 2
        self.wfile.write(content[:half])
        self.close_connection |= broken
        if not broken:
            time.sleep(self.server.body_seconds)
            self.wfile.write(content[half:])

    def log_message(self, *_: object) -> None:
        pass


def _end_with_parent() -> None:
    """Ends this process when the one that started it does, however that ends."""
    sys.stdin.read()
    os._exit(0)


def _serve(port: int) -> None:
    from gcp_storage_emulator.server import create_server

    emulator = _free_port()
    create_server("127.0.0.1", emulator, in_memory=True, default_bucket=NAME).start()
    proxy = _Proxy(port, emulator)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    print("ready", flush=True)
    proxy.serve_forever()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))

"""The server: connections, each with one request at a time (docs/spec/serving.md, 2 and 3)."""

import asyncio
import contextlib
import http
import logging
import secrets
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

from websockets.asyncio.server import Server, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from imagewam_jax.errors import ConfigError, InputError, MessageError
from imagewam_jax.serving import access, pages
from imagewam_jax.serving.acting import Actor, Row
from imagewam_jax.serving.batching import Answer, Batcher, DeadlineMissed
from imagewam_jax.serving.connection import Connection
from imagewam_jax.serving.contract import LARGEST_FRAME, Contract
from imagewam_jax.serving.recorder import Recorder, open_recorder
from imagewam_jax.serving.requests import Request, ResetRequest, read_request
from imagewam_jax.serving.sessions import Session, Sessions
from imagewam_jax.serving.settings import (
    BAD_REQUESTS,
    BURST_SECONDS,
    HANDSHAKE_SECONDS,
    IDLE_SECONDS,
    PING_SECONDS,
    PONG_SECONDS,
    SHUTDOWN_SECONDS,
    UNFINISHED_SECONDS,
    WRITE_SECONDS,
    Settings,
)
from imagewam_jax.serving.state import State
from imagewam_jax.wire import protocol
from imagewam_jax.wire.messages import pack, shown, unpack

_LOG = logging.getLogger(__name__)
_WEBSOCKETS_LOG = logging.getLogger(f"{__name__}.websockets")
_WEBSOCKETS_LOG.setLevel(logging.CRITICAL)  # what concerns us is told in lines of ours


class Refused(Exception):
    """A request is answered with an error, which begins with its kind."""

    def __init__(self, kind: str, text: str):
        super().__init__(f"{kind}{text}")
        self.kind = kind


class PolicyServer:
    """A policy that answers robots, from `run` to SIGTERM."""

    def __init__(self, load: Callable[[], tuple[Actor, Contract]], settings: Settings):
        """`load` gives the policy; it is called while robots may already connect.

        ConfigError: certificate or sizes of batches cannot be used.
        """
        self.state = State()
        self._load, self._settings = load, settings
        self._batcher = Batcher(settings.buckets, self.state.metrics)
        self._tokens = dict(settings.tokens)
        self._tls = access.tls_context(settings.certificate, settings.key)
        self._ready = asyncio.Event()
        self._stopping = asyncio.Event()
        self._busy: set[Connection] = set()  # those whose request is being answered
        self._recorder: Recorder | None = None
        self._recording = contextlib.ExitStack()

    async def run(self, listening: socket.socket, say: Callable[[str], None] = print) -> None:
        """Accepts connections at once, answers them when everything is loaded and compiled, and
        returns when `stop` was called and what ran is answered. Raises what loading raises."""
        server = await serve(
            self._talk,
            sock=listening,
            ssl=self._tls,
            compression=None,
            max_size=LARGEST_FRAME,
            max_queue=1,
            open_timeout=HANDSHAKE_SECONDS,
            close_timeout=1.0,
            ping_interval=PING_SECONDS,
            ping_timeout=PONG_SECONDS,
            process_request=self._welcome,
            logger=_WEBSOCKETS_LOG,
            server_header=None,
            create_connection=Connection,
        )
        stopping = asyncio.create_task(self._stopping.wait())
        work = [
            asyncio.create_task(self._load_and_act(say)),
            asyncio.create_task(self._watch_unfinished_messages()),
        ]
        try:
            await asyncio.wait((stopping, *work), return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            await self._close(server)
        finally:
            self._batcher.close()
            for task in (stopping, *work):
                task.cancel()
            await asyncio.to_thread(self._recording.close)
        failed = [r for r in await asyncio.gather(*work, return_exceptions=True) if _is_fault(r)]
        if failed:
            raise failed[0]

    def stop(self) -> None:
        """Accepts no one any more and ends when what runs is answered."""
        self._stopping.set()

    def reload(self) -> None:
        """Reads tokens and certificate again. Where they cannot be used, the old ones stay."""
        settings = self._settings
        try:
            if settings.tokens_file is not None:
                self._tokens = access.read_tokens(settings.tokens_file)
            if self._tls is not None:
                access.load_certificate(self._tls, settings.certificate, settings.key)
            _LOG.info("tokens and certificate were read again")
        except ConfigError as error:
            _LOG.error("not read again: %s", error)

    def handle_signals(self) -> None:
        """SIGTERM and Ctrl-C stop the server, SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        loop.add_signal_handler(signal.SIGHUP, self.reload)

    async def _load_and_act(self, say: Callable[[str], None]) -> None:
        self._actor, contract = await self._batcher.on_device(self._load)
        self.state.contract = contract
        if self._settings.record is not None:
            opened = open_recorder(
                self._settings.record, contract, self.state.metrics.recorder_dropped
            )
            self._recorder = self._recording.enter_context(opened)
        await self._batcher.compile(self._actor, say)
        self.state.set_ready(True)
        self._ready.set()
        await self._batcher.run()

    async def _close(self, server: Server) -> None:
        """Closes every connection with code 1001, one with a request in flight after its answer."""
        self.state.set_ready(False)
        server.close(close_connections=False)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SHUTDOWN_SECONDS):
                idle = [each for each in self.state.connections if each not in self._busy]
                await asyncio.gather(*(self._leave(each) for each in idle))
                while self._busy:
                    await asyncio.sleep(0.01)
        await asyncio.gather(*(self._leave(each) for each in list(self.state.connections)))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(server.wait_closed(), SHUTDOWN_SECONDS)

    async def _leave(self, connection: Connection) -> None:
        await connection.close(1001, "the server shuts down")

    async def _watch_unfinished_messages(self) -> None:
        """Closes connections whose client began a message and does not go on."""
        while True:
            await asyncio.sleep(1.0)
            waiting = self.state.connections.keys() - self._busy if self.state.is_ready else ()
            for connection in waiting:  # of the others, nothing is read in the meantime
                if connection.unfinished_seconds() > UNFINISHED_SECONDS:
                    self.state.metrics.rejected.labels("unfinished").inc()
                    _LOG.warning("%s: a message without its end", connection.address)
                    connection.transport.abort()

    async def _welcome(self, connection: Connection, request: HttpRequest) -> Response | None:
        """Answers plain HTTP, and refuses who may not connect."""
        path = request.path.partition("?")[0]
        if path in pages.OPEN:
            return pages.respond(self.state, path, request.method)
        client = access.client_of(request.headers.get("Authorization"), self._tokens)
        if client is None:
            self.state.metrics.rejected.labels("token").inc()
            return pages.unauthorized()
        if request.headers.get("Upgrade", "").lower() != "websocket":
            return await asyncio.to_thread(pages.respond, self.state, path, request.method)
        if len(self.state.connections) >= self._settings.connections:
            self.state.metrics.rejected.labels("connections").inc()
            return pages.text(http.HTTPStatus.SERVICE_UNAVAILABLE, "too many connections\n")
        connection.client = client
        return None

    async def _talk(self, connection: Connection) -> None:
        """One connection, from the metadata to its end."""
        sessions = Sessions(connection.address, connection.client)
        self.state.connections[connection] = sessions
        self.state.metrics.sessions.inc()
        begun, code = time.monotonic(), None
        try:
            await self._when_ready(connection)
            sessions.recorder = self._recorder
            await self._send(connection, pack(self.state.contract.metadata))
            code = await self._converse(connection, sessions)
        except ConnectionClosed:
            pass
        except Exception:  # a fault of the server, which must not end in silence
            _LOG.exception("%s: the connection failed", connection.address)
            await connection.close(1011)
        finally:
            self._busy.discard(connection)
            self._batcher.forget(connection)
            for session in sessions:
                session.end()
            del self.state.connections[connection]
            self.state.metrics.sessions.dec()
            if code is not None:
                await connection.close(*code)
            _LOG.info(
                "%s: %d chunks in %.0f s, closed with %s",
                connection.address,
                sum(session.chunks for session in sessions),
                time.monotonic() - begun,
                connection.close_code,
            )

    async def _when_ready(self, connection: Connection) -> None:
        """Waits until the policy is compiled, or the client is gone."""
        ready = asyncio.ensure_future(self._ready.wait())
        gone = asyncio.ensure_future(connection.wait_closed())
        await asyncio.wait((ready, gone), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        gone.cancel()

    async def _converse(self, connection: Connection, sessions: Sessions) -> tuple[int, str] | None:
        """Answers one message after the other; returns how to close the connection."""
        bad, allowance, before = 0, BURST_SECONDS * self._settings.rate, time.monotonic()
        while not self._stopping.is_set():
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    frame = await connection.recv()
            except TimeoutError:
                return 1000, "idle"
            if len(frame) > self.state.contract.max_frame:
                self.state.metrics.rejected.labels("size").inc()
                return 1009, f"more than {self.state.contract.max_frame} bytes"
            now = time.monotonic()
            allowance = min(
                allowance + (now - before) * self._settings.rate,
                BURST_SECONDS * self._settings.rate,
            )
            before, allowance = now, allowance - 1
            if allowance < 0:
                self.state.metrics.rejected.labels("rate").inc()
                return 1008, f"more than {self._settings.rate:g} requests per second"
            self._busy.add(connection)
            try:
                is_good = await self._respond(connection, sessions, frame, now)
            finally:
                self._busy.discard(connection)
            bad = 0 if is_good else bad + 1
            if bad == BAD_REQUESTS:
                self.state.metrics.rejected.labels("repeated").inc()
                return 1008, f"{BAD_REQUESTS} bad requests in a row"
        return 1001, "the server shuts down"

    async def _respond(
        self, connection: Connection, sessions: Sessions, frame: bytes | str, begun: float
    ) -> bool:
        """Sends the reply to a message, or the text of an error. False: the message was bad."""
        self.state.metrics.received_bytes.inc(len(frame))
        session = None
        try:
            request = self._read(frame)
            session = sessions[request.session]
            reply: bytes | str = await self._reply(connection, session, request, begun)
            code = "ok"
        except Refused as error:
            reply, code = str(error), error.kind
            if code == protocol.INVALID:
                self.state.metrics.rejected.labels("invalid").inc()
            # Its text: whoever keeps a record of the log would keep the message with the error.
            _LOG.warning("%s: %s", connection.address, reply)
        replying = time.monotonic()
        await self._send(connection, reply)
        end = time.monotonic()
        self.state.metrics.requests.labels(code).inc()
        self.state.metrics.request_seconds.observe(end - begun)
        self.state.latencies.add(reply=end - replying, total=end - begun)
        if session is not None and code == "ok":
            session.last_total_ms = 1000 * (end - begun)
        return code != protocol.INVALID

    def _read(self, frame: bytes | str) -> Request | ResetRequest:
        """The request in a message. Refused: it does not fit the policy."""
        try:
            if isinstance(frame, str):
                raise MessageError("message: expected a binary frame, got a text")
            return read_request(unpack(frame, self.state.contract.limits), self.state.contract)
        except (MessageError, InputError) as error:
            raise Refused(protocol.INVALID, f": {error}") from error

    async def _reply(
        self,
        connection: Connection,
        session: Session,
        request: Request | ResetRequest,
        begun: float,
    ) -> bytes:
        """The message that answers a request."""
        decoded = time.monotonic()
        if (reply := session.begin(request)) is not None:
            return pack(reply)
        try:
            row = session.row(request, self._settings.seed)
        except InputError as error:
            raise Refused(protocol.INVALID, f": {error}") from error
        answer = await self._act(connection, row, request.deadline)
        self.state.metrics.clipped_actions.inc(answer.chunk.clipped)
        self.state.metrics.queue_seconds.observe(answer.queued)
        self.state.latencies.add(decode=decoded - begun, queue=answer.queued, device=answer.device)
        timing = _timing(
            infer_ms=1000 * answer.device,
            prev_total_ms=session.last_total_ms,
            queue_ms=1000 * answer.queued,
            batch_rows=answer.rows,
            bucket=answer.bucket,
        )
        return pack(session.answer(row, answer.chunk, {protocol.TIMING: timing}))

    async def _act(self, connection: Connection, row: Row, deadline: float | None) -> Answer:
        """Refused: it cannot be acted on, or the policy failed."""
        try:
            if not self._actor.check_prompt(row.prompt):
                start = time.monotonic()
                await self._batcher.on_device(self._actor.encode, row.prompt)
                _LOG.info("encoded %s in %.2f s", shown(row.prompt), time.monotonic() - start)
            return await self._batcher.act(row, connection, deadline)
        except InputError as error:
            raise Refused(protocol.INVALID, f": {error}") from error
        except DeadlineMissed as error:
            self.state.metrics.deadline_missed.inc()
            raise Refused(protocol.LATE, f": {error}") from error
        except Exception as error:  # the client learns nothing but a number, the log has the rest
            number = secrets.token_hex(4)
            _LOG.exception("%s %s", protocol.INTERNAL, number)
            raise Refused(protocol.INTERNAL, f" {number}") from error

    async def _send(self, connection: Connection, message: bytes | str) -> None:
        """Sends a message, or ends the connection of a client that does not take it in time.

        ConnectionClosed: the client is gone.
        """
        try:
            async with asyncio.timeout(WRITE_SECONDS):
                await connection.send(message)
        except TimeoutError:
            self.state.metrics.rejected.labels("slow").inc()
            connection.transport.abort()
            await connection.wait_closed()


async def serve_until_told(
    load: Callable[[], tuple[Actor, Contract]],
    settings: Settings,
    listening: socket.socket,
    say: Callable[[str], None],
) -> None:
    """Serves a policy until SIGTERM or Ctrl-C. UserError: it cannot be loaded."""
    server = PolicyServer(load, settings)
    server.handle_signals()
    await server.run(listening, say)


def _timing(**milliseconds: Any) -> dict[str, Any]:
    """Plain numbers rounded to a microsecond: clients cut every array of a reply into steps."""
    return {
        name: round(float(value), 3) if isinstance(value, float) else int(value)
        for name, value in milliseconds.items()
        if value is not None
    }


def _is_fault(result: object) -> bool:
    return isinstance(result, BaseException) and not isinstance(result, asyncio.CancelledError)

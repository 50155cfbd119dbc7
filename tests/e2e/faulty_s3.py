"""An HTTP proxy on loopback before a real S3 server, which misbehaves as it is told.

    s3 = FaultyS3(seaweed.port)
    s3.intercept = lambda request: ServerFault(503, "SlowDown") if request.method == "PUT" else None
    s3.stop(); s3.start()       # an outage: open connections are cut, new ones refused

`intercept` sees every request before the server does. It may answer with a fault, sleep, or `forward` and answer
otherwise than the server did. None: the server answers.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOP = {"connection", "transfer-encoding", "content-length"}


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class ServerFault:
    status: int
    code: str

    @property
    def body(self) -> bytes:
        return f"<Error><Code>{self.code}</Code><Message>made for a test</Message></Error>".encode()


class FaultyS3:
    """Forwards to `upstream`, a port. `requests` holds all that came, oldest first."""

    def __init__(self, upstream: int) -> None:
        self._upstream = upstream
        self.port = 0
        self.intercept: Callable[[Request], ServerFault | None] = lambda request: None
        self.requests: list[Request] = []
        self._open: set[socket.socket] = set()
        self._server: ThreadingHTTPServer | None = None
        self.start()

    def start(self) -> None:
        """Listen: on a free port at first, on the same one again after `stop`."""
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        if self._server is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._server = None
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def forward(self, request: Request) -> tuple[int, list[tuple[str, str]], bytes]:
        """What the server says to a request: status, headers, body."""
        connection = http.client.HTTPConnection("127.0.0.1", self._upstream, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(request.method, request.path, skip_host=True, skip_accept_encoding=True)
            for name, value in request.headers.items():
                connection.putheader(name, value)
            connection.endheaders(request.body or None)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()


class _Handler(BaseHTTPRequestHandler):
    owner: FaultyS3
    protocol_version = "HTTP/1.1"
    # Two writes an answer: with Nagle's algorithm each would wait for a delayed acknowledgement.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.owner._open.add(self.connection)

    def finish(self) -> None:
        self.owner._open.discard(self.connection)
        # The other end of a connection cut by `stop` is gone.
        with contextlib.suppress(OSError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):
            super().handle()

    def _any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        request = Request(self.command, self.path, dict(self.headers.items()), body)
        self.owner.requests.append(request)
        fault = self.owner.intercept(request)
        if fault is None:
            status, headers, data = self.owner.forward(request)
        else:
            status, headers, data = fault.status, [("Content-Type", "application/xml")], fault.body
        length = dict(headers).get("Content-Length", "0") if request.method == "HEAD" and not fault else str(len(data))
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if request.method != "HEAD":
            self.wfile.write(data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def log_message(self, *args: object) -> None:
        pass

"""A TCP proxy on loopback that can lose one answer, or break one off in the middle."""

from __future__ import annotations

import contextlib
import re
import socket
import threading


class FlakyProxy:
    """Forwards to `port`. `break_next(rb"PUT", after=0)` lets the next such request through and cuts its answer."""

    def __init__(self, port: int) -> None:
        self._upstream, self._trap, self.broken = port, None, 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def break_next(self, request: bytes, after: int = 0) -> None:
        self._trap = (request, after)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                doom: list[int] = []
                threading.Thread(target=self._requests, args=(client, server, doom), daemon=True).start()
                threading.Thread(target=self._answers, args=(server, client, doom), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket, doom: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                if self._trap and re.match(self._trap[0], data):
                    doom.append(self._trap[1])
                    self._trap = None
                server.sendall(data)
        _close(client, server)

    def _answers(self, server: socket.socket, client: socket.socket, doom: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                if doom:
                    client.sendall(data[: doom[0]])
                    doom[0] -= len(data)
                    if doom[0] <= 0:
                        self.broken += 1
                        break
                else:
                    client.sendall(data)
        _close(client, server)


def _close(*sockets: socket.socket) -> None:
    for each in sockets:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()

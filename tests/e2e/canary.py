"""Marked secrets, and the search for them in everything that came out, also url-encoded and as base64."""

from __future__ import annotations

import base64
import gzip
import threading
import uuid
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import psutil


def mark(name: str) -> str:
    """A secret like those that are: with the characters that encodings change."""
    return f"canary/{name}+{uuid.uuid4().hex}="


def forms(secret: str) -> set[bytes]:
    """What a secret looks like in a text, a URL, and in base64 of any text around it."""
    raw = secret.encode()
    found = {raw, quote(secret, safe="").encode(), quote_plus(secret).encode(), quote(secret).encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw)
        certain = encoded[-(-before * 8 // 6) : (before + len(raw)) * 8 // 6]
        found |= {certain, certain.replace(b"+", b"-").replace(b"/", b"_")}
    return found


class Search:
    """Looks for `secrets` (by name); `found` holds where which was, `bytes` how much was looked at."""

    def __init__(self, secrets: dict[str, str]) -> None:
        self._forms = {name: forms(secret) for name, secret in secrets.items()}
        self.found: set[tuple[str, str]] = set()
        self.bytes, self.places = 0, 0

    def look(self, place: str, data: bytes) -> None:
        self.bytes, self.places = self.bytes + len(data), self.places + 1
        if data[:2] == b"\x1f\x8b":
            data += gzip.decompress(data)
        for name, wanted in self._forms.items():
            if any(form in data for form in wanted):
                self.found.add((name, place))

    def look_into(self, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                self.look(str(path), str(path).encode() + b"\n" + path.read_bytes())

    def look_at_store(self, seaweed: Any, url: str) -> int:
        """Every object below `url` with its metadata; returns how many."""
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        client, count = seaweed.client(), 0
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            for entry in page.get("Contents", []):
                got = client.get_object(Bucket=bucket, Key=entry["Key"])
                self.look(
                    f"s3 {entry['Key']}", f"{entry['Key']} {got['ResponseMetadata']}".encode() + got["Body"].read()
                )
                count += 1
        return count

    def look_at_arguments(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            try:
                line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
            except OSError:
                continue
            self.look(f"argv {line[:200]!r}", line)


class ArgumentWatch:
    """Looks at the arguments of all processes, several times a second, until it is closed."""

    def __init__(self, search: Search) -> None:
        self._search, self._ended = search, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(0.2):
            self._search.look_at_arguments(psutil.process_iter())

    def close(self) -> None:
        self._ended.set()
        self._thread.join()


class RefusingWandb:
    """A W&B server that answers, and refuses every key. `asked`: how often one was shown to it."""

    def __init__(self) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200 if self.path == "/healthz" else 401)

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                self.answer(401)

            def answer(self, code: int) -> None:
                if self.headers.get("Authorization"):
                    asked.append(self.path)
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                return

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def texts(secret: str) -> Iterator[bytes]:
    """Places a secret can hide in, for the proof that the search finds it there."""
    yield f'{{"key": "{secret}"}}'.encode()
    yield f"https://host/?token={quote(secret, safe='')}".encode()
    for login in ("", "a", "ab"):
        yield b"Authorization: Basic " + base64.b64encode(f"{login}:{secret}:after".encode())
    yield gzip.compress(secret.encode())

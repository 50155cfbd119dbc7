"""A hub of Hugging Face's on this machine: as much of its API as `datasets` asks of a repository of Parquet files
that lie in no folders.

    with Hub({"org/garments": {COMMIT: {"train.parquet": b"..."}}}) as hub:    # hub.url is HF_ENDPOINT
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

GATED = "gated"
PATH = re.compile(
    r"/(?:api/)?datasets/(?P<name>[^/]+/[^/]+)/(?P<what>revision|tree|paths-info|resolve)/(?P<commit>[^/?]+)/?(?P<file>[^?]*)"
)


class Hub(ThreadingHTTPServer):
    """name -> commit -> path -> content; `GATED` in place of the commits: nobody may read it. asked: every request."""

    daemon_threads = True

    def __init__(self, repositories: Mapping[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.asked = repositories, list[str]()
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Hub:
        Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = PATH.fullmatch(self.path.partition("?")[0])
        commits = self.server.repositories.get(found["name"]) if found else None
        if commits is None or found is None:
            self._answer(404 if found is None else 401, error="RepoNotFound")
        elif commits == GATED:
            self._answer(403, error="GatedRepo")
        elif found["commit"] not in commits:
            self._answer(404, error="RevisionNotFound")
        else:
            self._of(commits[found["commit"]], found["what"], found["commit"], found["file"])

    do_HEAD = do_POST = do_GET

    def _of(self, files: Mapping[str, bytes], what: str, commit: str, file: str) -> None:
        entries = [
            {"type": "file", "path": path, "oid": hashlib.sha1(content).hexdigest(), "size": len(content)}
            for path, content in files.items()
        ]
        if what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, {"id": "org/name", "sha": commit, "private": False, "tags": [], "siblings": siblings})
        elif what == "paths-info" or (what == "tree" and not file):
            self._answer(200, entries)
        elif file in files:
            self._answer(200, raw=files[file], commit=commit)
        else:
            self._answer(404, error="EntryNotFound", commit=commit)

    def _answer(self, status: int, value: Any = None, *, raw: bytes = b"", error: str = "", commit: str = "") -> None:
        body = raw or json.dumps({"error": error} if error else value).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "X-Repo-Commit": commit, "X-Error-Code": error}
        headers["ETag"] = f'"{hashlib.sha1(body).hexdigest()}"'
        for name, text in headers.items():
            if text:
                self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: requests are in `asked`."""

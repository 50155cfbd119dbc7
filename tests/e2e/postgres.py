"""A real Postgres for tests, in a temporary folder, on a free loopback port, ended by its process id."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USER = "forge"


class Postgres:
    """`url` has no password. It refuses to run as root, so then it runs as `nobody`."""

    def __init__(self, password: str) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
        assert found, "Postgres is not installed: apt-get install postgresql"
        self._bin = found[-1]
        self._as = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
        # Not below pytest's own folder, into which nobody else may look.
        self.folder = Path(tempfile.mkdtemp(prefix="forgeline-postgres-"))
        secret = self.folder / "password"
        secret.write_text(password)
        for path in (self.folder, secret) if self._as else ():
            shutil.chown(path, "nobody", "nogroup")
        self._run("initdb", "-D", "data", "-U", USER, "--auth=scram-sha-256", "--pwfile=password", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.url = f"postgresql://{USER}@127.0.0.1:{self.port}/prefect"
        self._password = password

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._bin / program), *arguments]
        environment = {**os.environ, "PGPASSWORD": getattr(self, "_password", "")}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, **self._as)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        command = [
            str(self._bin / "postgres"), "-D", "data", "-p", str(self.port), "-k", str(self.folder), "-F",
            "-c", "listen_addresses=127.0.0.1", "-c", "shared_buffers=16MB",
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, stdout=log, stderr=log, **self._as)
        deadline = time.monotonic() + 30
        while subprocess.run([self._bin / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode:
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "log").read_text()
            time.sleep(0.1)

    def make_database(self) -> None:
        self._run("createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "prefect")

    def stop(self) -> None:
        """At once, as a machine that goes away."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(30)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)

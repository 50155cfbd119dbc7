"""A Prefect server for one run, where none is running: `python -P -m infra.platform.temporary_server FD`.

Prefect starts one by itself, but only once it is imported, with all of the server's code in the run's own process too,
and in the terminal's process group, where Ctrl-C ends it before the run could report to it. This one starts at once,
beside the imports, and ends when its run does, however that ends: its standard input closes then.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from infra.errors import StageError
from infra.platform.health import answers

HOST = "127.0.0.1"
START_SECONDS = 120.0
STOP_SECONDS = 10.0
LOG_TAIL_BYTES = 4096


class TemporaryServer:
    """Starts at once; `wait` until it answers. Its database is in PREFECT_HOME. log: what it writes goes there."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with socket.socket() as listener, log.open("ab") as output:
            listener.bind((HOST, 0))
            self.api_url = f"http://{HOST}:{listener.getsockname()[1]}/api"
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "infra.platform.temporary_server", str(listener.fileno())],
                env={
                    **os.environ,
                    "PREFECT_UI_ENABLED": "0",
                    "PREFECT__SERVER_EPHEMERAL": "1",
                    "PREFECT__SERVER_FINAL": "1",
                },
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,
            )

    def wait(self) -> None:
        """Raises StageError where it ended, or does not answer in time."""
        deadline = time.monotonic() + START_SECONDS
        while not answers(f"{self.api_url}/health"):
            code = self._process.poll()
            if code is not None or time.monotonic() > deadline:
                how = "did not answer in time" if code is None else f"ended with exit code {code}"
                tail = self._log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
                hint = f"Its last lines:\n{tail}"
                raise StageError(f"the temporary Prefect server {how}", where=str(self._log), hint=hint)
            time.sleep(0.05)

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _end_with_the_run() -> None:
    os.read(0, 1)  # nothing is written to it. A buffer would be locked when the interpreter ends.
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)


def main(listener: int) -> None:
    os.nice(5)  # stages and the imports they wait for go first
    threading.Thread(target=_end_with_the_run, daemon=True).start()
    import uvicorn

    config = uvicorn.Config("prefect.server.api.server:create_app", factory=True, log_level="error", lifespan="on")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


if __name__ == "__main__":
    main(int(sys.argv[1]))

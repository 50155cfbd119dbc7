"""The process that hashes and uploads checkpoints while training goes on.

    process = CheckpointProcess(job.checkpoints, rank=0, ranks=2)
    process.save({"step": 120, "attempt": "a1", "files": {...}, "state": {...}})   # returns at once
    process.poll()           # None while it works, then an `Outcome`, once

Both sides speak JSON lines over the child's standard input and output. A process, not a thread: hashing and uploading
would hold the interpreter lock that the training step needs. It runs at low priority, so that on a machine without
idle cores the step comes first. Tensors cross in a memory file the child inherits; nothing is copied, and no file is
left behind if both are killed. A failing store is asked again, with growing pauses, for two minutes: an outage of one
is outlived. While it works, the process says so; one that has said nothing for `patience` seconds was stopped, or hangs
in a store that never answers: it is killed, and its save has failed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.checkpoints import CheckpointStore
from infra.errors import ForgelineError, StoreUnreachable, TransientError, error_from_json
from infra.local_garbage import own

NICE = 19
RETRY_SECONDS = 120.0
SIGN_SECONDS = 1.0
"""How often a process that gets on says so."""


@dataclass(frozen=True)
class Outcome:
    """How a save ended: `error` is None when it is stored. `seconds` it took in the process."""

    step: int
    seconds: float
    error: ForgelineError | None = None


class CheckpointProcess:
    """The training's side. The process starts with the first save, so that short training runs never pay for it."""

    def __init__(
        self,
        checkpoints: CheckpointStore,
        *,
        rank: int = 0,
        ranks: int = 1,
        inherit: int | None = None,
        patience: float = 600.0,
    ) -> None:
        """inherit: a file descriptor the child gets under the same number. patience: seconds it may say nothing."""
        self._inherit, self.patience = inherit, patience
        self._opening = {"checkpoints": checkpoints.to_json(), "rank": rank, "ranks": ranks}
        self._child: subprocess.Popen[bytes] | None = None
        self._step: int | None = None
        self._began = self._heard = 0.0
        self._unread = self._unsent = b""
        self._trouble = ""

    @property
    def busy(self) -> bool:
        return self._step is not None

    def save(self, request: dict[str, Any]) -> None:
        """Store what `request` says; see `_save`."""
        assert not self.busy, "one checkpoint at a time"
        if self._child is None or self._child.poll() is not None:
            self._start()
        assert self._child is not None and self._child.stdin is not None
        self._step, self._began, self._trouble = int(request["step"]), time.monotonic(), ""
        self._heard = self._began
        self._unsent += json.dumps(request).encode() + b"\n"
        self._send()

    def poll(self, timeout: float = 0.0) -> Outcome | None:
        """The outcome of the save under way if it has ended within `timeout` seconds."""
        if self._step is None:
            return None
        assert self._child is not None and self._child.stdout is not None
        deadline = time.monotonic() + timeout
        while True:
            self._send()
            wait = max(0.0, deadline - time.monotonic())
            # What could not be sent yet is tried again soon.
            ready = select.select([self._child.stdout], [], [], min(wait, 0.05) if self._unsent else wait)[0]
            if ready and (ended := self._read()) is not None:
                return self._end(*ended)
            if time.monotonic() - self._heard > self.patience:
                self._end_child()
                why = f" (its last trouble: {self._trouble})" if self._trouble else ""
                hint = "It was stopped, or the store does not answer; `checkpoint.patience` says how long is waited."
                what = f"the process that stores checkpoints did not get on for {self.patience:.0f} s{why}"
                return self._end(TransientError(what, hint=hint))
            if not ready and time.monotonic() >= deadline:
                return None

    def _send(self) -> None:
        """Hand over what fits into the pipe: a child that was stopped reads nothing, and the training must not wait."""
        assert self._child is not None and self._child.stdin is not None
        # A child that has just died is found by `poll`, which reads the end of its output.
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            while self._unsent:
                self._unsent = self._unsent[os.write(self._child.stdin.fileno(), self._unsent) :]

    def _read(self) -> tuple[ForgelineError | None] | None:
        """Take what the child says: how its save ended, or None while it works."""
        assert self._child is not None and self._child.stdout is not None
        chunk = os.read(self._child.stdout.fileno(), 65536)
        if not chunk:
            code = self._child.wait()
            self._child = None
            return (TransientError(f"the process that stores checkpoints ended (exit code {code})"),)
        *lines, self._unread = (self._unread + chunk).split(b"\n")
        self._heard = time.monotonic()
        for answer in map(json.loads, lines):
            if "ended" not in answer:
                self._trouble = answer.get("trouble", "")
                continue
            if failed := answer["ended"]:
                # Its S3 session holds the credentials it began with: renewed ones are read by a new process.
                self._end_child()
            return (error_from_json(failed) if failed else None,)
        return None

    def close(self) -> None:
        """End the process; a save under way is given up."""
        self._end_child()
        self._step = None

    def _end_child(self) -> None:
        if self._child is not None:
            self._child.kill()
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                pipe.close()
            with contextlib.suppress(
                subprocess.TimeoutExpired
            ):  # it waits for a disk that is gone: it does nothing more
                self._child.wait(5.0)
            self._child = None

    def _end(self, error: ForgelineError | None) -> Outcome:
        assert self._step is not None
        outcome = Outcome(self._step, time.monotonic() - self._began, error)
        self._step = None
        return outcome

    def _start(self) -> None:
        self._unread = b""
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-m", "infra.checkpoint_process"],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[] if self._inherit is None else [self._inherit],
            # The child must find this code even where it was put on the path by hand.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
        )
        assert self._child.stdin is not None
        os.set_blocking(self._child.stdin.fileno(), False)
        self._unsent = json.dumps(self._opening).encode() + b"\n"


def main() -> None:
    """Store what is asked for over standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the training decides
    os.nice(NICE)
    opening = json.loads(sys.stdin.readline())
    checkpoints: CheckpointStore | None = None
    for line in sys.stdin:
        request = json.loads(line)
        deadline, pause = time.monotonic() + RETRY_SECONDS, 0.5
        while True:
            failed: dict[str, Any] | None = None
            try:
                checkpoints = checkpoints or CheckpointStore.from_json(opening["checkpoints"])
                _save(checkpoints, request, opening["rank"], opening["ranks"])
                break
            except ForgelineError as error:
                failed = error.to_json()
                if not isinstance(error, StoreUnreachable) or time.monotonic() + pause > deadline:
                    break
                _say({"trouble": error.what})
            time.sleep(pause)
            pause = min(2 * pause, 10.0)
        _say({"ended": failed})


def _say(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class _Signs:
    """Tells the training now and then that bytes have moved."""

    def __init__(self) -> None:
        self.next = 0.0

    def __call__(self, done: int, total: int) -> None:
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + SIGN_SECONDS
            _say({"bytes": [done, total]})


def _save(checkpoints: CheckpointStore, request: dict[str, Any], rank: int, ranks: int) -> None:
    """Commit one checkpoint and prune.

    request: {"step", "attempt", "state", "files": {name: path}, "growing": {name: [path, bytes]}, "prune": {...}}.
    Of a file that is still appended to, its first `bytes` bytes are taken.
    """
    with tempfile.TemporaryDirectory(prefix="forgeline-checkpoint-") as folder:
        own(Path(folder))
        files = {name: Path(path) for name, path in request["files"].items()}
        for number, (name, (source, size)) in enumerate(request["growing"].items()):
            files[name] = Path(folder, str(number))
            with Path(source).open("rb") as reader, files[name].open("wb") as writer:
                shutil.copyfileobj(reader, writer)
                writer.truncate(size)
        checkpoints.commit(
            request["step"],
            files,
            request["state"],
            attempt=request["attempt"],
            rank=rank,
            ranks=ranks,
            on_progress=_Signs(),
        )
        if rank == 0:
            checkpoints.prune(**request["prune"])


if __name__ == "__main__":
    main()

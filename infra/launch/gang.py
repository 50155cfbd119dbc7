"""One job's processes: a supervisor that forks the ranks, watches them, and answers for them.

The supervisor leads a session of its own. It reads one JSON line (a `JobSpec`) from its socket and answers two:
`{"pid": 123}` once the ranks run and `{"exit": 0, "reason": ""}` when every process of the job is gone. A line
`cancel SECONDS` stops the job, and so does the end of the connection: whoever asked for the job has died.

Stopping means SIGTERM to the ranks (once: training saves its state on the first and gives up on the second), SIGKILL
to what is left after the grace. A rank that fails stops the others the same way, because they would wait for it in the
next collective until a time-out. A rank that exits 75 has saved its state together with the others: they get time to
finish instead of a signal. Processes that ranks leave behind are killed when the last rank has ended, whatever session
they moved to.

A rank whose beat (`infra/launch/rank.py`) stands still and that used no processor time either for ten seconds was
stopped, or waits for a disk that is gone; it will not come back, so the job is ended and fails. A long call that keeps
the interpreter to itself stops the beat too; its processor time distinguishes the two.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import time
import traceback
import types
from pathlib import Path
from typing import Any, NoReturn

from infra.launch.network import free_port
from infra.launch.process import adopt_orphans, die_with_parent, kill_descendants, reap
from infra.launch.rank import BEAT_SECONDS, GRACE_SECONDS, run_rank, sign_of_life

PREEMPTED = 75
PREEMPT_GRACE_SECONDS = 60.0
SILENCE_SECONDS = 10.0
REQUEST_SECONDS = 30.0


def supervise(connection: socket.socket, server: int) -> NoReturn:
    """Run the job that comes over `connection`, answer, and end this process. Called in a fork of the warm server."""
    code = 1
    try:
        os.setsid()
        adopt_orphans()
        # Handlers first: a signal that comes before them would end this process without an answer.
        supervisor = _Supervisor(connection, server)
        die_with_parent(server)
        supervisor.run()
        code = 0
    except (OSError, ValueError, KeyError):
        traceback.print_exc()
    finally:
        kill_descendants()
        os._exit(code)


class _Supervisor:
    def __init__(self, connection: socket.socket, server: int) -> None:
        self.connection, self.server = connection, server
        self.ranks: dict[int, int] = {}
        self._signs: dict[int, tuple[object, float]] = {}
        self.exit, self.reason = 0, ""
        self.deadline: float | None = None
        self.asked, self.stopping = "", False
        self._unread = b""
        self._hung_up = False
        self._signalled = False
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self._wake_write)

    def _on_stop(self, signum: int, frame: types.FrameType | None) -> None:
        self._signalled = True

    def run(self) -> None:
        self.connection.settimeout(REQUEST_SECONDS)
        while b"\n" not in self._unread:
            if not (chunk := self.connection.recv(65536)):
                return  # cancelled before it began
            self._unread += chunk
        line, _, self._unread = self._unread.partition(b"\n")
        self.connection.setblocking(False)
        self._read()
        if self._stop_wanted() is not None:
            self._answer({"exit": -int(signal.SIGTERM), "reason": "cancelled before it started"})
            return
        spec = json.loads(line)
        self.folder = Path(spec["folder"])
        self.log = os.open(self.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._start(spec)
        self._answer({"pid": os.getpid()})
        self._watch()
        if not kill_descendants():
            self._note("some processes of this job could not be killed")
        self._answer({"exit": self.exit, "reason": self.reason})

    def _start(self, spec: dict[str, Any]) -> None:
        port = spec["master_port"] or free_port()
        life_read, life_write = os.pipe()  # ends for every rank at once when this process is gone
        me = os.getpid()
        for local_rank in range(spec["ranks"]):
            pid = os.fork()
            if pid == 0:
                os.close(life_write)
                self._leave()
                run_rank(spec, local_rank, port, self.log, life_read, me)
            self.ranks[pid] = spec["first_rank"] + local_rank
        os.close(life_read)

    def _leave(self) -> None:
        """In a rank: give up everything that is the supervisor's."""
        signal.set_wakeup_fd(-1)
        for fd in (self._wake_read, self._wake_write, self.connection.detach()):
            os.close(fd)

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self.connection, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while self.ranks:
                left = BEAT_SECONDS if self.deadline is None else self.deadline - time.monotonic()
                # It wakes for each beat, whatever it waits for: that is its own sign of life.
                for key, _ in selector.select(min(BEAT_SECONDS, max(0.0, left))):
                    if key.fileobj is self.connection:
                        self._read()
                        if self._hung_up:
                            selector.unregister(self.connection)
                    else:
                        _drain(self._wake_read)
                # Of ranks that ended together, one that was killed comes first: the others lost their partner.
                for pid, code in sorted(reap(), key=lambda ended: ended[1]):
                    if pid in self.ranks:
                        self._ended(self.ranks.pop(pid), code)
                if not self.stopping and (grace := self._stop_wanted()) is not None:
                    self._stop("asked to stop" if os.getppid() == self.server else "the warm server died", grace)
                if not self.stopping and (silent := self._silent()):
                    self._end_silent(silent)
                if self.deadline is not None and time.monotonic() >= self.deadline and self.ranks:
                    self._note(f"killing rank {', '.join(map(str, sorted(self.ranks.values())))}: did not stop in time")
                    self.deadline = None
                    for pid in self.ranks:
                        os.kill(pid, signal.SIGKILL)

    def _silent(self) -> list[int]:
        """Processes that gave no sign of life, neither a beat nor processor time, for `SILENCE_SECONDS`."""
        now, silent = time.monotonic(), []
        for pid, rank in self.ranks.items():
            sign = sign_of_life(pid, self.folder / f"rank-{rank}.beat")
            if self._signs.get(pid, (None, now))[0] != sign:
                self._signs[pid] = sign, now
            elif now - self._signs[pid][1] >= SILENCE_SECONDS:
                silent.append(pid)
        return silent

    def _end_silent(self, silent: list[int]) -> None:
        ranks = ", ".join(str(rank) for rank in sorted(self.ranks[pid] for pid in silent))
        self.exit, self.reason = -int(signal.SIGKILL), f"rank {ranks} gave no sign of life for {SILENCE_SECONDS:.0f} s"
        self._note(f"{self.reason}; ending the job")
        self._stop("", GRACE_SECONDS)
        for pid in silent:
            os.kill(pid, signal.SIGKILL)

    def _ended(self, rank: int, code: int) -> None:
        if code == 0 or self.exit != 0:
            return
        self.exit = code
        self.reason = f"{self.asked}; " if self.asked else ""
        self.reason += f"rank {rank} " + (
            f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited {code}"
        )
        if self.ranks and not self.stopping:
            if code == PREEMPTED:
                self.deadline = time.monotonic() + PREEMPT_GRACE_SECONDS
            else:
                self._note(f"{self.reason}; stopping the other ranks")
                self._stop("", GRACE_SECONDS)

    def _stop(self, why: str, grace: float) -> None:
        self.stopping, self.asked = True, why
        self.deadline = min(self.deadline or float("inf"), time.monotonic() + grace)
        if self.exit != PREEMPTED:
            for pid in self.ranks:
                os.kill(pid, signal.SIGTERM)

    def _read(self) -> None:
        try:
            chunk = self.connection.recv(4096)
        except BlockingIOError:
            return
        except ConnectionError:
            chunk = b""
        self._hung_up = not chunk
        self._unread += chunk

    def _stop_wanted(self) -> float | None:
        """Seconds of grace if the job shall stop."""
        for line in self._unread.splitlines():
            if line.startswith(b"cancel "):
                return float(line.split()[1])
        return GRACE_SECONDS if self._hung_up or self._signalled else None

    def _answer(self, message: dict[str, Any]) -> None:
        try:
            self.connection.setblocking(True)
            self.connection.sendall(json.dumps(message).encode() + b"\n")
            self.connection.setblocking(False)
        except (BrokenPipeError, ConnectionError):
            self._hung_up = True

    def _note(self, text: str) -> None:
        os.write(self.log, f"forgeline: {text}\n".encode())


def _drain(fd: int) -> None:
    try:
        while os.read(fd, 4096):
            continue
    except BlockingIOError:
        return

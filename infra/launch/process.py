"""What a process can ask of the kernel so that nothing outlives its run: ties to a parent, and the end of a whole tree.

The ties are Linux calls (prctl). Elsewhere they do nothing, and the pipes and sockets that every process of a run holds
take over: their other end closes when its owner dies, however it dies.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Bound before any fork: a dlopen in a freshly forked child can meet a lock that another thread held.
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _prctl(option: int, value: int) -> None:
    if _LIBC is not None and _LIBC.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"prctl({option}): {os.strerror(error)}")


def die_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when the thread that forked it ends.

    parent: its process id, as known before the fork; ends this process if it has died already. Only for children of
    single-threaded processes: the signal comes when the forking *thread* exits, not the process.
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies, so that none of them slips away."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(seconds: float = 5.0) -> bool:
    """SIGKILL every descendant of this process, sessions of their own or not, and reap them. True when none is left."""
    deadline = time.monotonic() + seconds
    me = psutil.Process()
    while children := me.children(recursive=True):
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                continue
        reap()
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def reap() -> list[tuple[int, int]]:
    """(pid, exit code) of every child that ended since the last call; negative codes are signals."""
    ended: list[tuple[int, int]] = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended.append((pid, os.waitstatus_to_exitcode(status)))

"""A forked child that answers calls, one at a time: what runs in it leaves no trace in its parent's memory.

    child = Forked("student", make)         # make() runs in the child and returns an object
    child.start("predict", 3)               # calls object.predict(3) there; returns at once
    value = child.result()                  # waits for the answer

A child that dies is an error of the stage, not a hang: its pipe closes.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe
from typing import Any

from infra.errors import ForgelineError, StageError, error_from_json
from infra.launch.process import die_with_parent


class Forked:
    """A child process around one object. Fork before any torch operation: thread pools do not survive a fork."""

    def __init__(self, name: str, make: Callable[[], Any], close: Sequence[Connection] = ()) -> None:
        self.name = name
        parent = os.getpid()
        self.connection, theirs = Pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                for other in (*close, self.connection):
                    other.close()
                die_with_parent(parent)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                _serve(make, theirs)
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        theirs.close()

    def start(self, method: str, *args: Any) -> None:
        """Call `object.method(*args)` in the child."""
        try:
            self.connection.send((method, args))
        except BrokenPipeError:
            raise self._died() from None

    def result(self) -> Any:
        """The answer to the call under way. Raises the child's own error, or StageError if it died."""
        try:
            status, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._died() from None
        if status == "error":
            raise error_from_json(value)
        return value

    def call(self, method: str, *args: Any) -> Any:
        self.start(method, *args)
        return self.result()

    def _died(self) -> StageError:
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        code = os.waitstatus_to_exitcode(status)
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        memory = "Most likely it ran out of memory." if code == -signal.SIGKILL else "See the log."
        return StageError(f"the process evaluating {self.name!r} {how}", where=self.name, hint=memory)

    def close(self) -> None:
        """End the child and wait until it is gone."""
        self.connection.close()
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0


def _serve(make: Callable[[], Any], connection: Connection) -> None:
    served: Any = None
    while True:
        try:
            method, args = connection.recv()
        except EOFError:
            return
        try:
            if served is None:
                served = make()
            answer: tuple[str, Any] = ("ok", getattr(served, method)(*args))
        except ForgelineError as error:
            answer = ("error", error.to_json())
        except MemoryError:
            answer = ("error", StageError("out of memory", hint="Use a larger machine.").to_json())
        except Exception as failure:
            traceback.print_exc()
            answer = ("error", StageError(f"{type(failure).__name__}: {failure}", hint="See the log.").to_json())
        connection.send_bytes(pickle.dumps(answer, protocol=pickle.HIGHEST_PROTOCOL))


@contextlib.contextmanager
def forked(make: dict[str, Callable[[], Any]]) -> Iterator[dict[str, Forked]]:
    """One child a name, all ended on the way out."""
    children: dict[str, Forked] = {}
    try:
        for name, build in make.items():
            # A child that holds a sibling's pipe would keep it open after the parent died.
            children[name] = Forked(name, build, close=[c.connection for c in children.values()])
        yield children
    finally:
        for child in children.values():
            child.close()

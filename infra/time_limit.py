"""A limit on the time that other people's code takes: a template or a pattern out of a pipeline file, a row at a time.

    limit = TimeLimit("the chat template", seconds=10)
    try:
        text = limit(lambda: render(messages))
    except TookTooLong as error:
        ...                                   # this row is set aside

A pattern such as `(a+)+b` or two loops over a range take for ever on the wrong row, and nothing in the pattern or the
template says so for certain, so it is the clock that decides. What is too slow for a row is far from what any row needs
(seconds against microseconds), so a slow machine sets no other rows aside than a fast one.
"""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import TypeVar

from infra.errors import StageError

T = TypeVar("T")
MOST = 20
"""Rows that take too long before the whole stage is given up."""


class TookTooLong(Exception):
    """The call was ended; its text is the reason for a row."""


class TimeLimit:
    """Calls that may take `seconds` each. After `MOST` that took longer a StageError ends the work.

    In the main thread an alarm interrupts whatever runs, regular expressions included. In another thread Python code is
    interrupted between two of its steps.
    """

    def __init__(self, what: str, *, seconds: float, where: str | None = None) -> None:
        self.what, self.seconds, self.where = what, seconds, where
        self.late = 0

    def __call__(self, call: Callable[[], T]) -> T:
        """The call's result. Raises TookTooLong, StageError, and what the call raises."""
        here = threading.current_thread() is threading.main_thread()
        try:
            return self._with_alarm(call) if here else self._with_watch(call)
        except TookTooLong as error:
            self.late += 1
            if self.late >= MOST:
                raise StageError(
                    f"{self.what} takes more than {self.seconds:g} s for each of {self.late} texts",
                    where=self.where,
                    hint="Write it in another way: a repetition within a repetition, or a loop within a loop, may "
                    "have no end.",
                ) from error
            raise

    def _with_alarm(self, call: Callable[[], T]) -> T:
        running = True

        def ring(number: int, frame: FrameType | None) -> None:
            if running:
                raise self._error()

        before = signal.signal(signal.SIGALRM, ring)
        timer = signal.setitimer(signal.ITIMER_REAL, self.seconds)
        try:
            return call()
        finally:
            running = False
            signal.setitimer(signal.ITIMER_REAL, *timer)
            signal.signal(signal.SIGALRM, before)

    def _with_watch(self, call: Callable[[], T]) -> T:
        thread, lock, running = ctypes.c_ulong(threading.get_ident()), threading.Lock(), True

        def ring() -> None:
            with lock:
                if running:
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(TookTooLong))

        timer = threading.Timer(self.seconds, ring)
        timer.daemon = True
        timer.start()
        try:
            return call()
        except TookTooLong:
            raise self._error() from None
        finally:
            with lock:
                running = False
            timer.cancel()

    def _error(self) -> TookTooLong:
        return TookTooLong(f"{self.what} takes more than {self.seconds:g} s for it")

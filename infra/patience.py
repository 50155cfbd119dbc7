"""How long a store that is away is waited for: one budget for everything a process asks of it.

    store = open_store(url, patience=Patience())     # a job: also while it opens

A run or a job outlives a server that restarts or a network that is down for a moment: what may be asked twice is asked
again, with growing, scattered pauses. Only `StoreUnreachable` is waited for; wrong credentials do not get better. The
budget counts from the first call of an outage that failed, whoever made it, so a store that is gone for good is given
up once, and not by every call again. Commands that only look (`plan`, `show`) wait for nothing.
"""

from __future__ import annotations

import functools
import logging
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar, cast

from infra.errors import StoreUnreachable

WAIT_SECONDS = 60.0
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 2.0
"""Seconds between tries, doubled each time. Short: heartbeats wait here as well, and a lease is ten seconds."""
log = logging.getLogger(__name__)
T = TypeVar("T")
P = ParamSpec("P")


def wait_seconds() -> float:
    """Seconds that an outage of the store may last: FORGELINE_STORE_WAIT, or a minute."""
    return float(os.environ.get("FORGELINE_STORE_WAIT", WAIT_SECONDS))


class Patience:
    """The budget. Safe to use from many threads.

    seconds: that an outage may last; 0: nothing is asked twice. say: called with a sentence once an outage begins.
    """

    def __init__(self, seconds: float | None = None, say: Callable[[str], object] = log.warning) -> None:
        self.seconds = wait_seconds() if seconds is None else seconds
        self.say = say
        self._given_up = threading.Event()
        self._began: float | None = None
        self._last = 0.0

    def give_up(self) -> None:
        """Wait no more, also in calls that are waiting now."""
        self._given_up.set()

    def call(self, make: Callable[[], T]) -> T:
        """What `make` returns. Raises its StoreUnreachable once the budget is used up."""
        end, pause = None, FIRST_PAUSE
        while True:
            try:
                found = make()
            except StoreUnreachable as error:
                now = time.monotonic()
                end = min(self._end_of_outage(now, error), now + self.seconds if end is None else end)
                if now >= end or self._given_up.is_set():
                    raise
                self._given_up.wait(min(end - now, pause * random.uniform(0.5, 1.0)))  # noqa: S311
                pause = min(2 * pause, LONGEST_PAUSE)
            else:
                self._began = None
                return found

    def _end_of_outage(self, now: float, error: StoreUnreachable) -> float:
        began = self._began
        if began is None or now - self._last > self.seconds:
            self._began = began = now
            if self.seconds:
                self.say(f"the store is away and waited for, {self.seconds:.0f} s at most: {error.what}")
        self._last = now
        return began + self.seconds


class HasPatience(Protocol):
    patience: Patience


S = TypeVar("S", bound=HasPatience)


def patient(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """A method of a store that may be called twice, made again while the store is away."""

    @functools.wraps(method)
    def again(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.patience.call(lambda: method(self, *args, **kwargs))

    return cast("Callable[Concatenate[S, P], T]", again)

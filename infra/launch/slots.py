"""How much of this machine is in use: a counted set of CPU slots that jobs take together or not at all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager


class Slots:
    """`total` slots handed out in the order asked for, so that a job that needs them all is not overtaken forever."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._queue: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, count: int, cancelled: threading.Event) -> Iterator[None]:
        """Hold `count` slots (at most `total`) for the duration; enters empty-handed when `cancelled` is set."""
        count, ticket = min(count, self.total), object()
        with self._changed:
            self._queue.append(ticket)
            while not cancelled.is_set() and (self._queue[0] is not ticket or self._free < count):
                self._changed.wait(0.2)
            self._queue.remove(ticket)
            taken = 0 if cancelled.is_set() else count
            self._free -= taken
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += taken
                self._changed.notify_all()

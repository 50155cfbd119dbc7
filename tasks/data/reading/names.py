"""Names already given in a file: 12 to 24 bytes for each, where a dictionary of strings needs a hundred and more."""

from __future__ import annotations

from array import array

FIRST = 1 << 10
FULL = 2 / 3
"""Share of the slots from which on there are twice as many."""


class GivenNames:
    """Counts how often each name was given. A name is 64 bits that distinguish it from others, such as its hash.

    Names lie in a table with open addressing: a name is in the first free slot from the one its last bits say.
    """

    def __init__(self) -> None:
        self._slots = array("Q", [0]) * FIRST
        self._names = 0
        self._again: dict[int, int] = {}

    def give(self, name: int) -> int:
        """How often the name has been given, this time included."""
        name = name or 1  # 0 is a free slot
        place = self._place(name)
        if self._slots[place]:
            self._again[name] = self._again.get(name, 1) + 1
            return self._again[name]
        self._slots[place] = name
        self._names += 1
        if self._names > FULL * len(self._slots):
            self._grow()
        return 1

    def _place(self, name: int) -> int:
        """Where the name is, or the free slot where it would be."""
        slots, last = self._slots, len(self._slots) - 1
        place = name & last
        while slots[place] and slots[place] != name:
            place = (place + 1) & last
        return place

    def _grow(self) -> None:
        before, self._slots = self._slots, array("Q", [0]) * (2 * len(self._slots))
        for name in filter(None, before):
            self._slots[self._place(name)] = name

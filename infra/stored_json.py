"""JSON objects of a store that are read with a check: is this what was written?

    BEAT = StoredJson("the heartbeat of a claim", Beat, "Nothing to do: it counts as silent.")
    store.write_bytes(path, BEAT.encode({"count": 3, "released": False}))
    beat = BEAT.find(store, path)              # None: not there. Raises DamagedObject: what, where, what to do

What is written carries a checksum over all its fields, so that one bit which makes another number or name of it is
found. Objects of older versions have none: their fields are held to their types, and they may have no other field, or
damage to the checksum's own name would pass for age.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Generic, TypeVar, cast, get_type_hints

from infra.checksum import CHECKSUM, checksum_of
from infra.errors import DamagedObject
from infra.json_values import check_types, parse_json, shortened
from infra.objects import Objects

FORMAT = 2
T = TypeVar("T")


class StoredJson(Generic[T]):
    """One class of objects.

    what: its name in messages. shape: a TypedDict. remedy: what to do about a damaged one. partly: the shape names only
    the fields that are looked at.
    """

    def __init__(self, what: str, shape: type[T], remedy: str, *, partly: bool = False) -> None:
        self.what, self.shape, self.remedy, self.partly = what, shape, remedy, partly

    def encode(self, value: Mapping[str, Any]) -> bytes:
        """The object as it is stored. Raises ValueError on NaN."""
        plain = json.loads(json.dumps({**value, "format": FORMAT}, allow_nan=False))
        return (json.dumps({**plain, CHECKSUM: checksum_of(plain)}, indent=1, sort_keys=True) + "\n").encode()

    def find(self, store: Objects, path: str) -> T | None:
        """The object, or None if it is not there. Raises DamagedObject."""
        try:
            return self.read(store, path)
        except FileNotFoundError:
            return None

    def read(self, store: Objects, path: str) -> T:
        """The object. What looks damaged is read again. Raises FileNotFoundError, DamagedObject."""
        return store.again(lambda: self._read(store, path), DamagedObject, store.glances)

    def _read(self, store: Objects, path: str) -> T:
        data, where = store.read_bytes(path), f"{store.url}/{path}"
        try:
            value = parse_json(data)
        except ValueError as error:
            raise self.damaged(f"it is not valid JSON ({error})", where) from error
        return self.check(value, where)

    def check(self, value: Any, where: str) -> T:
        """`value` without its checksum and format. Raises DamagedObject."""
        if not isinstance(value, dict):
            raise self.damaged(f"an object was expected, {shortened(value)} was found", where)
        fields = {name: inner for name, inner in value.items() if name != CHECKSUM}
        try:
            if CHECKSUM not in value:
                self._check_types(fields, where)
            elif value[CHECKSUM] != checksum_of(fields):
                raise self.damaged("it is not what was written: its checksum differs", where)
        except RecursionError as error:
            raise self.damaged("it is nested too deeply", where) from error
        return cast(T, {name: inner for name, inner in fields.items() if name != "format"})

    def damaged(self, what: str, where: str) -> DamagedObject:
        """The error that says so."""
        return DamagedObject(f"{self.what} is damaged: {what}", where=where, hint=self.remedy)

    def _check_types(self, fields: dict[str, Any], where: str) -> None:
        try:
            check_types(fields, self.shape)
        except ValueError as error:
            raise self.damaged(str(error), where) from error
        unknown = sorted(fields.keys() - get_type_hints(self.shape).keys())
        if unknown and not self.partly:
            raise self.damaged(f"field {shortened(unknown[0])} is unknown, and it has no checksum", where)

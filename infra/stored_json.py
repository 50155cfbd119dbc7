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
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    NoReturn,
    NotRequired,
    TypeVar,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from infra.checksum import CHECKSUM, checksum_of
from infra.errors import DamagedObject

if TYPE_CHECKING:
    from infra.objects import Objects

FORMAT = 2
SHOWN = 60
NAMES = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}
NAMES |= {NoneType: "null"}
T = TypeVar("T")


def parse_json(data: bytes) -> Any:
    """What JSON text says. Raises ValueError, whatever is wrong with it: JSON has no NaN, and no number is infinite."""
    try:
        return json.loads(data, parse_constant=_not_a_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
            raise self.damaged(f"an object was expected, {_short(value)} was found", where)
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
            raise self.damaged(f"field {_short(unknown[0])} is unknown, and it has no checksum", where)


def check_types(value: Any, kind: Any, place: str = "") -> None:
    """Raises ValueError where a value of JSON is not of a type: a TypedDict, a union, `list`, `dict`, a plain one."""
    if kind is Any:
        return
    if is_typeddict(kind):
        check_types(value, dict[str, Any], place)
        # Asked for with their extras: `__required_keys__` does not see through annotations that are text.
        for name, inner in get_type_hints(kind, include_extras=True).items():
            below, optional = f"{place}.{name}" if place else name, get_origin(inner) is NotRequired
            if name in value:
                check_types(value[name], get_args(inner)[0] if optional else inner, below)
            elif kind.__total__ and not optional:
                raise ValueError(f"field {below} is missing")
        return
    union = get_args(kind) if get_origin(kind) is UnionType else ()
    plain = get_origin(kind) or kind
    if union:
        fits = next((one for one in union if isinstance(value, get_origin(one) or _plain(one))), None)
        if fits is not None:
            return check_types(value, fits, place)
    elif plain is float and isinstance(value, int | float) and not isinstance(value, bool):
        return
    elif isinstance(value, plain) and (plain is bool or not isinstance(value, bool)):
        inside = get_args(kind)[-1] if get_args(kind) else Any
        of = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for index, item in of:
            check_types(item, inside, f"{place}.{index}" if place else str(index))
        return
    expected = " or ".join(NAMES[get_origin(one) or _plain(one)] for one in union or (kind,))
    raise ValueError(f"field {place or 'of it'} is {_short(value)}, where {expected} was expected")


def _plain(kind: Any) -> Any:
    return dict if is_typeddict(kind) else kind


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:SHOWN]} is too large")
    return number


def _short(value: Any) -> str:
    text = "null" if value is None else ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

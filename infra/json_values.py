"""Values of JSON, read with a check: numbers that are finite, fields of the types that were promised."""

from __future__ import annotations

import json
from types import NoneType, UnionType
from typing import Any, NoReturn, NotRequired, get_args, get_origin, get_type_hints, is_typeddict

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


def parse_json(data: bytes) -> Any:
    """What JSON text says. Raises ValueError, whatever is wrong with it: JSON has no NaN, and no number is infinite."""
    try:
        return json.loads(data, parse_constant=_not_a_number, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


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
    raise ValueError(f"field {place or 'of it'} is {shortened(value)}, where {expected} was expected")


def _plain(kind: Any) -> Any:
    return dict if is_typeddict(kind) else kind


def _not_a_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:SHOWN]} is too large")
    return number


def shortened(value: Any) -> str:
    text = "null" if value is None else ascii(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."

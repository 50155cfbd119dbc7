"""Columns that pass through: from a source's rows to the dataset's, each with the type that is declared for it.

    sources: [{files: "goods.parquet", format: parquet, text_column: title, columns: {photo: binary, price: float32}}]

`image` and `audio` hold encoded bytes that can be decoded (of audio, as far as the header says); `list<int32>` and the
like hold lists. A dataset with any of these keeps its rows in memory-mapped Arrow files (`tasks/data/dataset/rows.py`).

A value of another type is converted where nothing is lost (a string may spell a number; bytes are base64 in JSON and
csv; an image of Hugging Face's is its bytes; a string in a `json` column is JSON), else its row is set aside. A missing
value (null; in jsonl no such column; in csv nothing between two delimiters, unless the type is string) stays missing.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Literal

from tasks.data.plain_values import plain
from tasks.data.reading.media import CHECKS

ColumnType = Literal[
    "string",
    "bool",
    "int32",
    "int64",
    "float32",
    "float64",
    "binary",
    "json",
    "image",
    "audio",
    "list<int32>",
    "list<int64>",
    "list<float32>",
    "list<float64>",
    "list<string>",
]
"""Names of Arrow's, as in `pyarrow.type_for_alias`; `json`, whatever JSON can say, is kept as a string."""
MEDIA = ("image", "audio")
LIST = "list<"
Values = tuple[Any, ...]
"""What a row has in the kept columns, by the columns' names."""
SHOWN = 40
NUMBERS = (bool, int, float, Decimal, str)


def values_reader(columns: Mapping[str, ColumnType], *, empty_is_missing: bool) -> Callable[[Any], Values | str]:
    """record -> its values in those columns, sorted by name, or what is wrong with one of them."""
    converters = [(name, kind, CONVERTERS[kind]) for name, kind in sorted(columns.items())]

    def read(record: Mapping[str, Any]) -> Values | str:
        found: list[Any] = []
        for name, kind, convert in converters:
            value = record.get(name)
            if value is None or (empty_is_missing and value == "" and kind != "string"):
                found.append(None)
                continue
            try:
                found.append(convert(value))
            except (ValueError, OverflowError, TypeError, ArithmeticError) as error:
                why = f", {error}" if kind in MEDIA and str(error) else ""
                return f"column {name!r} holds no {kind}: {_shown(value)}{why}"
        return tuple(found)

    return read


def arrow_type(kind: ColumnType) -> Any:
    """The `pyarrow.DataType` a column is stored in."""
    import pyarrow as pa

    if kind.startswith(LIST):
        return pa.list_(pa.type_for_alias(kind.removeprefix(LIST).removesuffix(">")))
    return {"json": pa.string(), "image": pa.binary(), "audio": pa.binary()}.get(kind) or pa.type_for_alias(kind)


def mapped(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Those of the columns whose values are memory-mapped: where there are any, the rows are kept in Arrow files."""
    return {name: kind for name, kind in (columns or {}).items() if kind in MEDIA or kind.startswith(LIST)}


def size_of(values: Values) -> int:
    """Bytes the values take, about; numbers are nothing beside them."""
    return sum(len(value) * (8 if isinstance(value, list) else 1) for value in values if hasattr(value, "__len__"))


def _shown(value: Any) -> str:
    text = f"{len(value)} bytes" if isinstance(value, bytes) else repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _string(value: Any) -> str | None:
    if isinstance(value, bytes):
        raise TypeError
    text = value if isinstance(value, str) else plain(value)  # as labels and ids are spelled
    if text is not None:
        text.encode()  # half a surrogate pair is no character
    return text


def _bool(value: Any) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    if isinstance(value, str):
        value = known.get(value.strip().lower())
    if value not in (0, 1):
        raise ValueError
    return bool(value)


def _integer(code: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, NUMBERS):
            raise TypeError
        number = int(value)
        if number != value and not isinstance(value, str):
            raise ValueError
        return _fitted(code, number)

    return convert


def _float(code: str) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, NUMBERS):
            raise TypeError
        return _fitted(code, float(value))

    return convert


def _fitted(code: str, number: Any) -> Any:
    """The number as it is stored; OverflowError where it is too large for that."""
    try:
        return struct.unpack(code, struct.pack(code, number))[0]
    except struct.error as error:
        raise OverflowError from error


def _binary(value: Any) -> bytes:
    if isinstance(value, Mapping):
        value = value["bytes"] if isinstance(value.get("bytes"), bytes) else None
    if isinstance(value, str):
        return base64.b64decode(value, validate=True)
    if not isinstance(value, bytes):
        raise TypeError
    return value


def _media(kind: str) -> Callable[[Any], Any]:
    check = CHECKS[kind]

    def convert(value: Any) -> bytes:
        raw = _binary(value)
        check(raw)
        return raw

    return convert


def _list(convert: Callable[[Any], Any], dtype: str = "") -> Callable[[Any], Any]:
    """A list, in text formats also one in JSON, whose items are all there and all of the type.

    dtype: numpy's name of the type, so that plain numbers are converted together, six times faster.
    """

    def converted(value: Any) -> list[Any]:
        if isinstance(value, str):
            value = json.loads(value)
        if not isinstance(value, list | tuple) or None in value:
            raise TypeError
        together = _together(value, dtype) if dtype else None
        return [convert(item) for item in value] if together is None else together

    return converted


def _together(values: Sequence[Any], dtype: str) -> list[Any] | None:
    """The numbers as they are stored; None where they have to be looked at one by one, to convert or to refuse them."""
    import numpy as np

    if not set(map(type, values)) <= ({float, int} if dtype.startswith("float") else {int}):
        return None
    try:
        with np.errstate(over="ignore"):
            stored = np.asarray(values, dtype)
    except OverflowError:
        return None
    if dtype == "float32" and not np.isfinite(stored).all():
        return None
    found: list[Any] = stored.tolist()
    return found


def _json(value: Any) -> str | None:
    return _string(spelled_json(json.loads(value) if isinstance(value, str) else value))


def spelled_json(value: Any) -> str:
    """Spelled in one way, so that equal values are equal rows."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False, separators=(",", ":"))


CONVERTERS: dict[ColumnType, Callable[[Any], Any]] = {
    "string": _string,
    "bool": _bool,
    "int32": _integer("<i"),
    "int64": _integer("<q"),
    "float32": _float("<f"),
    "float64": _float("<d"),
    "binary": _binary,
    "json": _json,
    "image": _media("image"),
    "audio": _media("audio"),
    "list<int32>": _list(_integer("<i"), "int32"),
    "list<int64>": _list(_integer("<q"), "int64"),
    "list<float32>": _list(_float("<f"), "float32"),
    "list<float64>": _list(_float("<d"), "float64"),
    "list<string>": _list(_string),
}

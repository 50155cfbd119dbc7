"""What the features of Hugging Face's `datasets` are here: a column type for each, or what there is instead of one.

    Value                    the type that holds it: int8 and uint16 are int32, float16 is float32, times are strings
    ClassLabel               string, the names; the label of the rows, where the stage names none and there is one
    List of values           list<int32> and the like; of ClassLabels list<string>
    Image, Audio, Json       image, audio, json
    Translation              string, a column for each language

A function of the features alone, which lie in the very files whose digests are in the key.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.errors import StageError
from infra.source_files import local_copy
from tasks.data.reading.datasets_door import features_of
from tasks.data.reading.found_files import FoundFile
from tasks.data.reading.media import missing_reader
from tasks.data.reading.records import arrow_batches
from tasks.data.reading.sources import Source
from tasks.data.reading.typed_columns import CONVERTERS, ColumnType

ROLES = ("id", "text", "group", "label")
"""Columns that all rows have; a feature of such a name has no place beside them."""
VALUES: Mapping[str, ColumnType] = {
    **dict.fromkeys(("string", "large_string", "string_view"), "string"),
    **dict.fromkeys(("date32", "date64"), "string"),
    **dict.fromkeys(("int8", "int16", "int32", "uint8", "uint16"), "int32"),
    **dict.fromkeys(("int64", "uint32"), "int64"),
    **dict.fromkeys(("float16", "float32", "halffloat", "float"), "float32"),
    **dict.fromkeys(("float64", "double"), "float64"),
    **dict.fromkeys(("binary", "large_binary"), "binary"),
    "bool": "bool",
}
SPELLED = re.compile(r"(timestamp|time32|time64|decimal)")
"""Values that a string holds without loss."""
OTHERS: Mapping[str, ColumnType] = {"ClassLabel": "string", "Image": "image", "Audio": "audio", "Json": "json"}


@dataclass
class Inferred:
    """columns: name -> type; classes: those that are ClassLabels; without: name -> what it is that has no type."""

    columns: dict[str, ColumnType] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    without: dict[str, str] = field(default_factory=dict)

    @property
    def label(self) -> str | None:
        """The column that is the label where nobody names one: the only ClassLabel, of several the one called so."""
        return "label" if "label" in self.classes else self.classes[0] if len(self.classes) == 1 else None


def inferred(features: Mapping[str, Any]) -> Inferred:
    """Typed columns of features as the schema of an Arrow file spells them (`datasets_door.features_of`)."""
    found = Inferred()
    for name, feature in features.items():
        if isinstance(feature, Mapping) and feature.get("_type") == "Translation":
            found.columns |= dict.fromkeys(feature["languages"], "string")
        elif (kind := _type_of(feature)) is not None:
            found.columns[name] = kind
            if isinstance(feature, Mapping) and feature.get("_type") == "ClassLabel":
                found.classes.append(name)
        else:
            found.without[name] = _described(feature)
    return found


def with_columns(source: Source, found: Inferred, label: str | None, where: str) -> tuple[Source, list[str]]:
    """The source with what its features say: `columns`, no text where no feature is called so, ids where one is.

    label: the column of the labels. Also sentences on what was left out. Raises StageError where nothing is left, or
    what reads a column is not installed.
    """
    warnings: list[str] = []
    new: dict[str, Any] = {"features": False}
    if source.text_column == "text" and source.has_text and not _elsewhere(source) and "text" not in found.columns:
        new["text_column"] = None
        texts = sorted(name for name, kind in found.columns.items() if kind == "string" and name not in {label, *ROLES})
        if texts:
            warnings.append(
                f"{where}: no feature is called 'text', so rows have no text; `text_column` can be {_or(texts)}"
            )
    if source.id_column is None and found.columns.get("id") in ("string", "int32", "int64"):
        new["id_column"] = "id"
    used = {new.get("text_column", source.text_column), new.get("id_column", source.id_column), label}
    columns = {name: kind for name, kind in found.columns.items() if name not in used}
    without = dict(found.without)
    for name in ROLES:
        if columns.pop(name, None) is not None:
            without[name] = f"rows have a {name!r} of their own"
    left = ", ".join(
        f"{name} ({what})" for name, what in without.items() if name not in (source.messages_column, label)
    )
    advice = "`columns` with a name and a type for each column you want takes what it names, as `json` if need be"
    if left:
        warnings.append(f"{where}: features without a typed column are left out: {left}; {advice}")
    if not columns and not source.model_copy(update=new).has_text:
        raise StageError(
            f"no feature has a typed column: {left or 'there is none'}", where=where, hint=f"Write {advice}."
        )
    if missing := missing_reader({*columns.values()}):
        raise StageError(missing, where=where, hint="Or write `columns` without them.")
    return source.model_copy(update={**new, "columns": columns or None}), warnings


def _elsewhere(source: Source) -> bool:
    return bool(source.template or source.messages_column)


def _or(names: Collection[str]) -> str:
    return " or ".join(sorted(names)[:5])


def _type_of(feature: Any) -> ColumnType | None:
    if isinstance(feature, list) and len(feature) == 1:
        return _list_of(feature[0])
    if not isinstance(feature, Mapping):
        return None
    kind = feature.get("_type")
    if kind == "Value":
        dtype = str(feature.get("dtype"))
        return "string" if SPELLED.match(dtype) else VALUES.get(dtype)
    if kind in ("List", "LargeList", "Sequence"):
        return _list_of(feature.get("feature"))
    return OTHERS.get(str(kind))


def _list_of(feature: Any) -> ColumnType | None:
    name = f"list<{_type_of(feature)}>"
    return next((kind for kind in CONVERTERS if kind == name), None)


def _described(feature: Any) -> str:
    """What a feature is, for people."""
    if isinstance(feature, list):
        return f"a list of {_described(feature[0])}" if feature else "a list"
    if not isinstance(feature, Mapping) or "_type" not in feature:
        return "a mapping"
    if feature["_type"] == "Value":
        return str(feature.get("dtype"))
    if feature["_type"] in ("List", "LargeList", "Sequence"):
        return f"a list of {_described(feature.get('feature'))}"
    return str(feature["_type"])


def read_features(file: FoundFile, scratch: Path) -> Mapping[str, Any]:
    """The features that an Arrow file of `datasets` names. Raises StageError on one that cannot be read."""
    import pyarrow as pa

    try:
        with local_copy(file.place.location, scratch) as place:
            return features_of(arrow_batches(place)[0])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StageError(
            f"not an Arrow file: {error}", where=f"sources: {file.path}", hint="It may be cut off: fetch it again."
        ) from error

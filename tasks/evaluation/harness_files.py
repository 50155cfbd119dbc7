"""Task files of the lm-evaluation-harness read nothing outside their folder: what lies elsewhere would be in no key."""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from infra.errors import StageError

DATA = ("data_files", "data_dir", "dataset_path")
"""Fields that name data, relative to the folder; `include` is relative to the file it stands in."""
SUFFIXES = (".yaml", ".yml")


class _Plain(yaml.SafeLoader):
    """YAML whose tags of their own (`!function`) stand for nothing."""


_Plain.add_multi_constructor("!", lambda loader, suffix, node: None)


def require_inside(folder: Path, files: Sequence[Path]) -> None:
    """Raises StageError where a task file names a file outside `folder`. What cannot be read, the harness names."""
    for path in files:
        if path.suffix not in SUFFIXES:
            continue
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _Plain)  # noqa: S506 - a safe loader
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            continue
        name = path.relative_to(folder)
        for field, text in _named(content):
            start = name.parent if field == "include" else Path()
            if Path(text).is_absolute() or Path(os.path.normpath(start / text)).parts[:1] == ("..",):
                raise StageError(
                    f"{name}: `{field}` names {text}, which lies outside the folder: its changes would not be noticed",
                    where="tasks",
                    hint="Put it into the folder, and name it relative to that.",
                )


def _named(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """(field, path) of everything that names a file, at any depth."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _named(inner, key if key in (*DATA, "include") else field)
    elif isinstance(value, list):
        for inner in value:
            yield from _named(inner, field)
    elif isinstance(value, str) and field:
        yield field, value

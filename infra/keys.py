"""Identity: canonical JSON and sha256.

A key names a stage's output before it exists: sha256 over {stage kind, stage version, identity params, digests of the
inputs' content}. Two machines, processes or hash seeds must agree on it, so canonical JSON refuses whatever has no one
stable text: NaN, infinities, sets, callables, objects.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

CHUNK = 1 << 20


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces. Raises TypeError or ValueError on anything without a stable text."""
    return json.dumps(
        _checked(value, "$"), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def _checked(value: Any, path: str) -> Any:
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{path}: {value} has no canonical JSON form")
        # 1.0 and 1 mean the same to a reader of the YAML, so they must be the same to the key.
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, list | tuple):
        return [_checked(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for name in value:
            if not isinstance(name, str):
                raise TypeError(f"{path}: key {name!r} is not a string")
        return {name: _checked(item, f"{path}.{name}") for name, item in value.items()}
    raise TypeError(f"{path}: {type(value).__name__} has no canonical JSON form")


def digest(value: Any) -> str:
    """sha256 hex of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 hex of a file's bytes, read in constant memory."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_digest(files: Iterable[tuple[str, str]]) -> str:
    """One digest for a set of (relative path, sha256) pairs, whatever order they come in."""
    return digest(sorted([path, sha] for path, sha in files))

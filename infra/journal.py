"""Journals: numbered entries in a store, each written once, so that of two who go on from one entry, one is told.

    journals/<name>/000001.json

A journal is for decisions that must be taken once by whoever is first: nothing but create-only writes decides.
"""

from __future__ import annotations

import re
from typing import Any

from infra.objects import json_bytes
from infra.refs import checked_name
from infra.store import Store

ENTRY = re.compile(r"(\d{6})\.json")


def newest(store: Store, name: str) -> tuple[int, dict[str, Any]] | None:
    """Number and content of the last entry, None if there is none."""
    folder = _folder(name)
    found = [int(match[1]) for entry in store.list(folder) if (match := ENTRY.fullmatch(entry))]
    number = max(found, default=0)
    last = store.find_json(f"{folder}/{number:06d}.json") if number else None
    # A listing may lag behind; the numbers have no gaps.
    while (later := store.find_json(f"{folder}/{number + 1:06d}.json")) is not None:
        last, number = later, number + 1
    return (number, last) if last is not None else None


def append(store: Store, name: str, after: int, content: dict[str, Any]) -> bool:
    """Write entry `after + 1`; False if somebody else wrote it first."""
    return store.create(f"{_folder(name)}/{after + 1:06d}.json", json_bytes(content))


def _folder(name: str) -> str:
    return f"journals/{checked_name(name)}"

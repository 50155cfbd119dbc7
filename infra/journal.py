"""Journals: numbered entries in a store, each written once, so that one of two writers learns of the other.

    journals/<name>/000001.json

A journal is for decisions that must be taken once by whoever is first: nothing but create-only writes decides.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, TypeVar

from infra.checksum import unsealed
from infra.errors import DamagedObject
from infra.json_values import parse_json
from infra.quarantine import move_aside
from infra.refs import checked_name
from infra.store import Store
from infra.stored_json import StoredJson

log = logging.getLogger(__name__)
T = TypeVar("T")
ENTRY = re.compile(r"(\d{6})\.json")


def newest(store: Store, name: str, entries: StoredJson[T]) -> tuple[int, T] | None:
    """Number and content of the last entry, None if there is none.

    A damaged last entry is set aside, with a warning in the log: then the one before is the last, and what was decided
    is decided again.
    """
    folder = _folder(name)
    found = [int(match[1]) for entry in store.list(folder) if (match := ENTRY.fullmatch(entry))]
    number = max(found, default=0)
    # A listing may lag behind; the numbers have no gaps.
    while store.exists(_path(name, number + 1)):
        number += 1
    while number:
        try:
            return number, entries.read(store, _path(name, number))
        except FileNotFoundError:
            number -= 1
        except DamagedObject as error:
            path = _path(name, number)
            place = move_aside(store, path, partial(_aside, name, number), partial(_sound, store, path, entries))
            log.warning("entry %d of the journal %s: %s; set aside in %s", number, name, error.what, place)
    return None


def damaged_entries(store: Store) -> dict[str, str]:
    """Store path of every damaged entry of all journals, each with what is wrong."""
    found = {}
    for path in store.walk("journals"):
        try:
            store.again(partial(_whole, store, path), ValueError, store.glances)
        except FileNotFoundError:
            continue
        except ValueError as error:
            found[path] = str(error)
    return found


def _whole(store: Store, path: str) -> dict[str, Any]:
    """An entry of any journal. Raises FileNotFoundError, ValueError on a damaged one."""
    return unsealed(parse_json(store.read_bytes(path)))


def append(store: Store, name: str, after: int, content: Mapping[str, Any], entries: StoredJson[Any]) -> bool:
    """Write entry `after + 1`; False if somebody else wrote it first."""
    return store.create(_path(name, after + 1), entries.encode(content))


def _sound(store: Store, path: str, entries: StoredJson[Any]) -> bool:
    try:
        return bool(entries.read(store, path))
    except DamagedObject:
        return False


def _aside(name: str, number: int) -> str:
    return f"quarantine/{_folder(name)}/{number:06d}"


def _path(name: str, number: int) -> str:
    return f"{_folder(name)}/{number:06d}.json"


def _folder(name: str) -> str:
    return f"journals/{checked_name(name)}"

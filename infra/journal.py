"""Journals: numbered entries in a store, each written once, so that of two who go on from one entry, one is told.

    journals/<name>/000001.json

A journal is for decisions that must be taken once by whoever is first: nothing but create-only writes decides.
"""

from __future__ import annotations

import json
import logging
import re
from functools import partial
from typing import Any

from infra.checksum import sealed, unsealed
from infra.objects import json_bytes
from infra.quarantine import move_aside
from infra.refs import checked_name
from infra.store import Store

log = logging.getLogger(__name__)
ENTRY = re.compile(r"(\d{6})\.json")


def newest(store: Store, name: str) -> tuple[int, dict[str, Any]] | None:
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
            return number, store.again(partial(_read, store, _path(name, number)), ValueError, store.glances)
        except FileNotFoundError:
            number -= 1
        except ValueError as error:
            place = _set_aside(store, name, number)
            log.warning("entry %d of the journal %s is damaged (%s); set aside in %s", number, name, error, place)
    return None


def damaged_entries(store: Store) -> dict[str, str]:
    """Store path of every damaged entry of all journals, each with what is wrong."""
    found = {}
    for path in store.walk("journals"):
        try:
            store.again(partial(_read, store, path), ValueError, store.glances)
        except FileNotFoundError:
            continue
        except ValueError as error:
            found[path] = str(error)
    return found


def append(store: Store, name: str, after: int, content: dict[str, Any]) -> bool:
    """Write entry `after + 1`; False if somebody else wrote it first."""
    return store.create(_path(name, after + 1), json_bytes(sealed(content)))


def _read(store: Store, path: str) -> dict[str, Any]:
    """Raises FileNotFoundError, ValueError on a damaged entry."""
    return unsealed(json.loads(store.read_bytes(path)))


def _set_aside(store: Store, name: str, number: int) -> str | None:
    path = _path(name, number)

    def sound() -> bool:
        try:
            return bool(_read(store, path))
        except ValueError:
            return False

    return move_aside(store, path, lambda: f"quarantine/{_folder(name)}/{number:06d}", sound)


def _path(name: str, number: int) -> str:
    return f"{_folder(name)}/{number:06d}.json"


def _folder(name: str) -> str:
    return f"journals/{checked_name(name)}"

"""What runs left on this machine outside the store: folders of runs, temporary folders. Found, weighed, removed.

    $FORGELINE_HOME/runs/<run>/             logs, events and metrics of a run's jobs; `process.json` is whose it is
    $FORGELINE_HOME/{doctor,prepare}-*/     scratch of a command that was killed
    <temporary folder>/forgeline-*/         scratch of a job that was killed

Something goes once nothing in it was written for the given age, and never while the process that wrote it lives.
Artifacts, records and reports of runs are in the store and stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.json_values import parse_json
from infra.process_id import is_dead, is_here, this_process

OWNER = "process.json"
UNSAVED = "unsaved.json"
"""A record that its store did not take yet (`tasks/run/unsaved_records.py`): its folder stays."""
DAY = 86400.0
KEEP_DAYS = 30.0
"""Days after which what was left goes, unless another age is asked for."""
SETTLED = DAY
"""Seconds for which scratch of a killed process stays whatever age is asked for: it is short-lived."""


@dataclass(frozen=True)
class Leftover:
    """A folder. what: `run folder` or `scratch`. age: seconds since it was last written to. used: its process lives."""

    path: Path
    what: str
    bytes: int
    age: float
    used: bool


def own(folder: Path) -> None:
    """Note in a folder which process uses it."""
    (folder / OWNER).write_text(json.dumps(this_process()), encoding="utf-8")


def found(home: Path) -> list[Leftover]:
    """Everything of this kind, whatever its age."""
    return [_weighed(path, what) for path, what in _places(home)]


def old(home: Path, seconds: float) -> list[Leftover]:
    """What `remove` would remove now."""
    return [one for one in found(home) if not one.used and one.age > (seconds if one.what == "run folder" else SETTLED)]


def remove(home: Path, seconds: float) -> list[Leftover]:
    """Remove what was not used for so long; returns what is gone."""
    gone = []
    for one in old(home, seconds):
        shutil.rmtree(one.path, ignore_errors=True)
        if not one.path.exists():
            gone.append(one)
    return gone


def _places(home: Path) -> Iterator[tuple[Path, str]]:
    scratch = Path(tempfile.gettempdir())
    patterns = ((home / "runs", "*", "run folder"), (home, "doctor-*", "scratch"), (home, "prepare-*", "scratch"))
    for folder, pattern, what in (*patterns, (scratch, "forgeline-*", "scratch")):
        for path in sorted(folder.glob(pattern)):
            with contextlib.suppress(OSError):
                if path.is_dir() and not path.is_symlink() and path.lstat().st_uid == os.getuid():
                    yield path, what


def _weighed(folder: Path, what: str) -> Leftover:
    size, newest = 0, 0.0
    for parent, _, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in names)):
            with contextlib.suppress(OSError):  # it is just being removed
                info = path.lstat()
                size, newest = size + (info.st_size if path.name in names else 0), max(newest, info.st_mtime)
    return Leftover(folder, what, size, time.time() - newest, _is_used(folder))


def _is_used(folder: Path) -> bool:
    """Whether the process that owns the folder is known to live, or what it left is still wanted."""
    if (folder / UNSAVED).exists():
        return True
    try:
        owner = parse_json((folder / OWNER).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(owner, dict) and is_here(owner) and not is_dead(owner)

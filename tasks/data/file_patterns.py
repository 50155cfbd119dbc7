"""Glob patterns over relative POSIX paths, and the listing of a folder by one.

`*` and `?` stay inside one path component, `**` crosses them, `[ab]` is a set. As in a shell, names that start with a
dot are found only by a pattern that spells the dot. `glob.translate` exists from Python 3.13 on; this reads the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

MAGIC = re.compile(r"[*?\[]")


def split_root(pattern: str) -> tuple[Path, str]:
    """(folder, rest): the longest leading folder without wildcards, and the pattern below it.

    A pattern without any wildcard names one file: its parent folder and its name.
    """
    parts = Path(pattern).parts
    magic = next((i for i, part in enumerate(parts) if MAGIC.search(part)), len(parts) - 1)
    return Path(*parts[:magic]) if magic else Path(), "/".join(parts[magic:])


@lru_cache(maxsize=256)
def compiled(pattern: str) -> re.Pattern[str]:
    """A glob pattern as a regular expression that must match the whole relative path. Raises ValueError."""
    text, i = "", 0
    while i < len(pattern):
        char = pattern[i]
        if pattern.startswith("**/", i):
            text, i = text + r"(?:[^/]+/)*", i + 3
        elif pattern.startswith("**", i):
            text, i = text + r".*", i + 2
        elif char == "[" and (end := pattern.find("]", i + 2)) > 0:
            inner = pattern[i + 1 : end].replace("\\", r"\\").replace("[", r"\[")
            text, i = text + (f"[^/{inner[1:]}]" if inner[0] == "!" else f"[{inner}]"), end + 1
        else:
            text, i = text + {"*": "[^/]*", "?": "[^/]"}.get(char, re.escape(char)), i + 1
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no pattern ({error.msg}); `[a-z]` is a set, `[[]` a bracket") from error


def matches_any(path: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path matches one of the patterns."""
    return any(compiled(pattern).fullmatch(path) for pattern in patterns)


def walk(
    root: Path, pattern: str, exclude: Iterable[str] = (), skip_folders: frozenset[str] = frozenset()
) -> list[str]:
    """Sorted relative paths of the files under `root` that match `pattern` and no `exclude`.

    Folder links are not followed, so a link cannot make a circle. Raises OSError on a folder that cannot be listed.
    """
    wanted = compiled(pattern)
    refused = [compiled(p) for p in exclude]
    # `x/**` refuses everything below x, so x need not be entered; only a shortcut, never a change of what matches.
    closed = [compiled(p[:-3]) for p in exclude if p.endswith("/**")]
    deep = "**" in pattern or "/" in pattern
    hidden = pattern.startswith(".") or "/." in pattern

    def below(folder: str, prefix: str) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith(".") and not hidden:
                    continue
                path = prefix + entry.name
                if entry.is_dir(follow_symlinks=False):
                    if deep and entry.name not in skip_folders and not any(c.fullmatch(path) for c in closed):
                        yield from below(entry.path, path + "/")
                elif wanted.fullmatch(path) and not any(r.fullmatch(path) for r in refused) and entry.is_file():
                    yield path

    return sorted(below(str(root), ""))

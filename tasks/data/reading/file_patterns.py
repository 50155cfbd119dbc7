"""Glob patterns over relative POSIX paths, and the listing of a folder by one.

`*` and `?` stay inside one path component, `**` crosses them, `[ab]` is a set. As in a shell, names that start with a
dot are found only by a pattern that spells the dot; so are names that other programs leave beside data (`clutter`).
`glob.translate` exists from Python 3.13 on; this reads the same.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

MAGIC = re.compile(r"[*?\[]")
CLUTTER = re.compile(
    r"_SUCCESS|_committed_.*|_started_.*|_(?:common_)?metadata|_temporary|_delta_log|.*_\$folder\$|__MACOSX"
    r"|~\$.*|[Tt]humbs\.db|[Dd]esktop\.ini"
)
"""Markers of Spark, Hadoop and Delta, locks of office programs, folders' pictures: beside data, never data."""


def split_root(pattern: str, is_there: Callable[[str], bool] = os.path.lexists) -> tuple[Path, str]:
    """(folder, rest): the longest leading folder that is one, and the pattern below it.

    A component with wildcards is a name if there is something of that name, so that `run[1]` means the folder which is
    called so. What a pattern of `*` and `?` finds among files holds the file of that name as well, so the last
    component, and one of `*` alone, stay patterns. Where nothing is left to match, it is the parent folder and the
    file's name, with its wildcards in brackets.
    """
    parts = Path(pattern).parts
    for i, part in enumerate(parts):
        last = i == len(parts) - 1
        if MAGIC.search(part):
            open_to_more = not part.strip("*") or (last and "[" not in part)
            if open_to_more or not is_there(str(Path(*parts[: i + 1]))):
                return Path(*parts[:i]), "/".join(parts[i:])
    name = MAGIC.sub(lambda found: f"[{found[0]}]", parts[-1]) if parts else ""
    return Path(*parts[:-1]), name


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


def clutter(name: str, pattern: str) -> bool:
    """Whether a file or folder is left out because of its name, which the pattern does not spell."""
    if name.startswith("."):
        return not (pattern.startswith(".") or "/." in pattern)
    return CLUTTER.fullmatch(name) is not None and name not in re.sub(r"\[(.)\]", r"\1", pattern).split("/")


def keeps(path: str, pattern: str, exclude: Iterable[str] = ()) -> bool:
    """Whether a relative path is one of those that `pattern` is for."""
    if not compiled(pattern).fullmatch(path) or matches_any(path, exclude):
        return False
    return not any(clutter(name, pattern) for name in PurePosixPath(path).parts)


@dataclass
class Walked:
    """What a folder holds for a pattern: relative paths, sorted.

    broken: links that match and lead nowhere. not_entered: links that lead nowhere and may have been folders, and
    those to a folder that holds them; each with where it leads.
    """

    files: list[str] = field(default_factory=list)
    broken: dict[str, str] = field(default_factory=dict)
    not_entered: dict[str, str] = field(default_factory=dict)


def walk(root: Path, pattern: str, exclude: Iterable[str] = (), skip_folders: frozenset[str] = frozenset()) -> Walked:
    """The files under `root` that match `pattern` and no `exclude`. Raises OSError on a folder that cannot be listed.

    Links to folders are followed, but not one that leads back to a folder it was reached through.
    """
    wanted = compiled(pattern)
    refused = [compiled(p) for p in exclude]
    # `x/**` refuses everything below x, so x need not be entered; only a shortcut, never a change of what matches.
    closed = [compiled(p[:-3]) for p in exclude if p.endswith("/**")]
    deep = "**" in pattern or "/" in pattern
    walked = Walked()

    def below(folder: str, prefix: str, through: tuple[str, ...]) -> Iterator[str]:
        with os.scandir(folder) as entries:
            for entry in entries:
                path = prefix + entry.name
                if clutter(entry.name, pattern):
                    continue
                is_folder, is_file = _kind(entry)
                if is_folder or not is_file:
                    shut = not deep or entry.name in skip_folders or any(c.fullmatch(path) for c in closed)
                if is_folder and not shut:
                    inner = _entered(entry, folder, through)
                    if inner is None:
                        walked.not_entered[path] = f"{_target(entry)}, which holds it"
                    else:
                        yield from below(entry.path, path + "/", inner)
                elif is_folder or any(r.fullmatch(path) for r in refused):
                    continue
                elif is_file:
                    if wanted.fullmatch(path):
                        yield path
                elif entry.is_symlink():
                    if wanted.fullmatch(path):
                        walked.broken[path] = _target(entry)
                    elif not shut and "." not in entry.name:
                        walked.not_entered[path] = f"{_target(entry)}, which is not there"

    walked.files = sorted(below(str(root), "", (os.path.realpath(root),)))
    return walked


def _entered(entry: os.DirEntry[str], folder: str, through: tuple[str, ...]) -> tuple[str, ...] | None:
    """The real folders that links led through once this one is entered; None where it holds one of them."""
    if not entry.is_symlink():
        return through
    real = os.path.realpath(entry.path)
    circle = any(os.path.commonpath([real, other]) == real for other in (*through, os.path.realpath(folder)))
    return None if circle else (*through, real)


def _target(entry: os.DirEntry[str]) -> str:
    return str(Path(entry.path).readlink())


def _kind(entry: os.DirEntry[str]) -> tuple[bool, bool]:
    """Whether it is, or leads to, a folder or a file; neither where links lead to each other."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False, False

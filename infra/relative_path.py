"""Paths out of a manifest: they name a file in their folder, and nothing else."""

from __future__ import annotations

from pathlib import PurePosixPath

from infra.errors import StoreError


def safe_relative_path(path: str) -> str:
    """Return `path` if it stays inside its folder; raise StoreError if it is absolute, climbs, or holds NUL or '\\'."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\0" in path or "\\" in path or ":" in parts[0]:
        raise StoreError(f"unsafe path {path!r} in a manifest", hint="Paths must be relative and stay in their folder.")
    return path

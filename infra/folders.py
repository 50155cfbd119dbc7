"""Folders that Forgeline writes to on this machine."""

from __future__ import annotations

import tempfile
from pathlib import Path

from infra.errors import UsageError


def writable(folder: Path, variable: str) -> Path:
    """The folder, made if need be. Raises UsageError where it cannot be written, before any work is lost by it.

    variable: the environment variable that names another one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot be written: {error.strerror or error}",
            where=f"{folder} ({variable})",
            hint=f"Free space or mend its permissions, or set {variable} to another folder.",
        ) from error
    return folder

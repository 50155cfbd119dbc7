"""The truth about a training: one JSON object a line, appended and flushed as it happens, in `records/`.

On resume the lines travel with the checkpoint, so a training that moved to another machine has one unbroken,
duplicate-free record.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """An append-only JSONL file. Lines carry `step`; `restore` replaces the file by a checkpoint's lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self.entries: list[dict[str, Any]] = []
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def append(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def restore(self, entries: list[dict[str, Any]]) -> None:
        """Start from these entries, written by an earlier attempt."""
        self._stream.close()
        self._stream = self.path.open("w", encoding="utf-8")
        self.entries = []
        for entry in entries:
            self.append(entry)

    def close(self) -> None:
        self._stream.close()

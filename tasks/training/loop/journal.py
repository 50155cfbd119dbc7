"""The truth about a training run: one JSON object a line, appended and flushed as it happens, in `records/`.

On resume the lines travel with the checkpoint, so a training run that moved to another machine has one unbroken,
duplicate-free record. Nothing is kept in memory: a training run may have millions of steps.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """An append-only JSONL file. `restore` replaces its content by a checkpoint's copy."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        self._stream: TextIO = path.open("a", encoding="utf-8")

    def append(self, entry: dict[str, Any]) -> None:
        self._stream.write(json.dumps(entry) + "\n")
        self._stream.flush()

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every line so far, oldest first."""
        with self.path.open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def size(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size

    def restore(self, source: Path) -> None:
        """Start from what an earlier attempt wrote."""
        self._stream.close()
        shutil.copyfile(source, self.path)
        self._stream = self.path.open("a", encoding="utf-8")

    def close(self) -> None:
        self._stream.close()

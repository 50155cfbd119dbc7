"""Where Forgeline keeps what belongs to this machine."""

from __future__ import annotations

import os
from pathlib import Path

HOME = "FORGELINE_HOME"


def home() -> Path:
    """Folder for logs, job files and local servers: $FORGELINE_HOME, else `.forgeline` here."""
    return Path(os.environ.get(HOME, ".forgeline"))

"""Records of runs that ended while their store was away: kept in the run's folder, stored when somebody comes by.

Any command that starts or lists runs on the machine comes by.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StoreError
from infra.process_id import is_dead, is_here

if TYPE_CHECKING:
    from infra.store import Store

UNSAVED = "unsaved.json"
log = logging.getLogger(__name__)


def keep(folder: Path, store: Store, run: str, record: bytes) -> Path:
    """Write down the record of a run that the store did not take. Returns where."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / UNSAVED
    partial = path.with_name(f"{UNSAVED}.part")
    partial.write_text(json.dumps({"store": store.url, "run": run, "record": record.decode()}), encoding="utf-8")
    partial.replace(path)
    return path


def deliver(home: Path, store: Store) -> list[str]:
    """Store what lies in `home` (`$FORGELINE_HOME`) for this store; returns the runs whose records it took."""
    taken = []
    for path in sorted((home / "runs").glob(f"*/{UNSAVED}")):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["store"] != store.url or _alive(json.loads(kept["record"])):
                continue
            store.write_bytes(f"runs/{kept['run']}/run.json", kept["record"].encode())
            path.unlink()
            taken.append(kept["run"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StoreError) as error:
            log.warning("the record of a run in %s could not be stored: %s", path, error)
    return taken


def _alive(record: dict[str, Any]) -> bool:
    """Whether the run goes on, and stores its record itself."""
    process = record["process"]
    return bool(record["status"] == "running" and is_here(process) and not is_dead(process))

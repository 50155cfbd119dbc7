"""A stage as a Prefect task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.pipeline.load import load_pipeline
from tasks.run.prefect_task import UiUpdates, stage_task


def test_no_stage_asks_the_server_for_a_slot_before_it_begins(tmp_path: Path) -> None:
    """Prefect's engine does so for each tag of a task, and fails the task where the server is away for a moment."""
    file = tmp_path / "p.yaml"
    file.write_text("name: p\nstore: store\nstages:\n  rows: {dataset: {sources: [{files: a.txt}]}}\n")
    context: Any = None
    node, updates = load_pipeline(file).stages["rows"], UiUpdates()
    made = stage_task(node, [node], {}, context, lambda name, ended: None, lambda name: None, updates)
    updates.close(1.0)
    assert made.tags == set()

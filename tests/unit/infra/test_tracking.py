"""The metrics file: what is logged is read back, whatever a kill leaves at its end."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import StageError
from infra.tracking import JobTracker, Row, TrackingSettings, read_metrics

VALUES = st.dictionaries(st.text(max_size=12), st.floats(width=64), max_size=4)


def same(a: float, b: float) -> bool:
    return a == b or (math.isnan(a) and math.isnan(b))


@given(logged=st.lists(VALUES, max_size=6), cut=st.integers(min_value=0, max_value=400))
def test_a_cut_file_reads_as_a_prefix_and_can_be_continued(
    tmp_path_factory: pytest.TempPathFactory, logged: list[dict[str, float]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("m") / "metrics.jsonl"
    tracker = JobTracker(path)
    for step, values in enumerate(logged):
        tracker.log(step, values)
    tracker.close()
    whole = path.read_bytes()
    os.truncate(path, max(0, len(whole) - cut))
    kept = path.read_bytes().count(b"\n")

    resumed = JobTracker(path)
    resumed.log(1000, {"loss": 1.0})
    resumed.close()
    *rows, last = read_metrics(path).rows

    assert last.step == 1000 and last.values == {"loss": 1.0}
    assert [row.step for row in rows] == list(range(kept))
    for row, values in zip(rows, logged, strict=False):
        assert row.values.keys() == values.keys()
        assert all(same(row.values[name], values[name]) for name in values)


def test_a_killed_writer_loses_no_logged_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    code = """
import os, signal, sys
from pathlib import Path
from infra.tracking import JobTracker
tracker = JobTracker(Path(sys.argv[1]))
for step in range(500):
    tracker.log(step, {"loss": 1 / (step + 1)})
os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert len(read_metrics(path).rows) == 500


def test_a_repeated_step_counts_once_with_the_later_values(tmp_path: Path) -> None:
    tracker = JobTracker(tmp_path / "m")
    tracker.log(1, {"loss": 3.0})
    tracker.log(2, {"loss": 2.0, "grad_norm": 1.0})
    tracker.log(2, {"loss": 1.5})
    tracker.summary({"a": 1})
    tracker.summary({"a": 2, "b": math.inf})
    found = read_metrics(tmp_path / "m")
    assert [(r.step, r.values) for r in found.rows] == [(1, {"loss": 3.0}), (2, {"loss": 1.5, "grad_norm": 1.0})]
    assert found.summary == {"a": 2.0, "b": math.inf}


def test_other_ranks_write_nothing_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    tracker = JobTracker(None)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    assert read_metrics(tmp_path / "none").rows == [] and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["{", "[]", '{"step": 1}', '{"step": 1, "seconds": 0, "values": {"x": null}}', "1"])
def test_a_foreign_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m"
    path.write_text(f'{{"step": 1, "seconds": 0.5, "values": {{"loss": "NaN"}}}}\n{line}\n')
    with pytest.raises(StageError, match=r"m:2: not a metrics line"):
        read_metrics(path)


def test_one_line_is_strict_json(tmp_path: Path) -> None:
    tracker = JobTracker(tmp_path / "m")
    tracker.log(0, {"loss": math.nan})
    assert b'"loss":"NaN"' in (tmp_path / "m").read_bytes()
    assert isinstance(read_metrics(tmp_path / "m").rows[0], Row)


@pytest.mark.parametrize(
    ("mode", "environ", "expected"),
    [
        ("auto", {}, "online"),
        ("auto", {"WANDB_MODE": ""}, "online"),
        ("auto", {"WANDB_MODE": "  "}, "online"),
        *(("auto", {"WANDB_MODE": value}, "online") for value in ("online", "Online", " ONLINE ", "'online'", "run", "shared")),
        *(("auto", {"WANDB_MODE": value}, "offline") for value in ("offline", "Offline", '"OFFLINE"', "dryrun", "DryRun")),
        *(("auto", {"WANDB_MODE": value}, "offline") for value in ("dryrun?", "offlien", "dry-run", "test")),
        *(("auto", {"WANDB_MODE": value}, "disabled") for value in ("disabled", "DISABLED", "Disabled ", "off", "false", "0")),
        *(("auto", {"WANDB_DISABLED": value}, "disabled") for value in ("true", "True", "1", "yes", "ON", "t", "anything")),
        *(("auto", {"WANDB_DISABLED": value}, "online") for value in ("", "false", "False", "0", "no", "off")),
        ("auto", {"WANDB_DISABLED": "true", "WANDB_MODE": "online"}, "disabled"),
        ("auto", {"WANDB_DISABLED": "false", "WANDB_MODE": "dryrun"}, "offline"),
        ("online", {}, "online"),
        ("online", {"WANDB_MODE": "dryrun"}, "offline"),
        ("online", {"WANDB_MODE": "Offline"}, "offline"),
        ("online", {"WANDB_DISABLED": "true"}, "disabled"),
        ("offline", {}, "offline"),
        ("offline", {"WANDB_MODE": "online"}, "offline"),
        ("offline", {"WANDB_DISABLED": "1"}, "disabled"),
        ("disabled", {"WANDB_MODE": "online"}, "disabled"),
    ],
)  # fmt: skip
def test_the_mode_with_a_key_set(mode: str, environ: dict[str, str], expected: str) -> None:
    settings = TrackingSettings.model_validate({"mode": mode})
    assert settings.resolved_mode({"WANDB_API_KEY": "k", **environ}) == expected
    without = settings.resolved_mode(environ)
    asked = expected if mode != "auto" or environ.get("WANDB_MODE", "").strip() or expected == "disabled" else "offline"
    assert without == asked, "without a key it is online only where somebody said so"

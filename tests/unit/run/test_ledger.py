"""The ledger: every millisecond of a run in exactly one bucket, and what a job's files say of its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.ledger import BUCKETS, Interval, stage_buckets, wall_buckets
from infra.tracking import JobTracker
from tasks.run.job_times import JobTimes, furthest_step

moments = st.integers(-5, 45).map(lambda ms: ms / 1000)
intervals = st.lists(st.builds(Interval, st.sampled_from("ab"), st.sampled_from(BUCKETS), moments, moments), max_size=8)


@given(intervals, st.integers(0, 40))
def test_each_instant_is_in_the_first_bucket_any_stage_is_in(given: list[Interval], wall: int) -> None:
    naive = dict.fromkeys(BUCKETS, 0)
    for ms in range(wall):
        at = (ms + 0.5) / 1000
        there = [one.bucket for one in given if one.start <= at < one.end]
        naive[min(there, key=BUCKETS.index, default="other")] += 1
    assert wall_buckets(given, wall / 1000) == {bucket: ms / 1000 for bucket, ms in naive.items()}


@given(st.lists(st.builds(Interval, st.sampled_from("ab"), st.sampled_from(BUCKETS), st.floats(-1e6, 1e6),
                          st.floats(-1e6, 1e6))), st.floats(0, 1e6))  # fmt: skip
def test_the_buckets_add_up_to_the_wall_time(given: list[Interval], wall: float) -> None:
    found = wall_buckets(given, wall)
    assert sum(round(1000 * seconds) for seconds in found.values()) == round(1000 * wall)
    assert min(found.values()) >= 0


def test_stages_are_added_up_each_for_itself() -> None:
    found = [
        Interval("a", "useful", 0, 2),
        Interval("b", "startup", 1, 3),
        Interval("b", "useful", 3, 9),
        Interval("", "startup", 0, 1),
    ]
    assert stage_buckets(found, 5) == {"a": {"useful": 2}, "b": {"useful": 2, "startup": 2}}
    assert wall_buckets(found, 5) == {**dict.fromkeys(BUCKETS, 0.0), "useful": 4, "startup": 1}


# --- a job's files ----------------------------------------------------------------------------------------------------


def job(folder: Path, phases: dict[str, float], rows: list[tuple[int, float, dict[str, float]]] = ()) -> Path:  # type: ignore[assignment]
    """A job folder; rows: (step, seconds since the job fetched its inputs, values)."""
    folder.mkdir(parents=True)
    (folder / "phases.json").write_text(json.dumps(phases))
    lines = [json.dumps({"step": step, "seconds": at, "values": values}) + "\n" for step, at, values in rows]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return folder


def step(number: int, at: float, seconds: float, **values: float) -> tuple[int, float, dict[str, float]]:
    return number, at, {"loss": 1.0, "seconds": seconds, "data_wait": 0.25, **values}


PHASES = {"started": 1.0, "fetched": 3.0, "ran": 13.0, "committed": 14.0}
STEPS = [
    step(5, 3.0, 1.0),  # the model was loaded two seconds after the inputs were there
    step(6, 4.0, 1.0),
    (6, 5.0, {"validation_loss": 1.0}),
    step(7, 7.0, 2.0, checkpoint_stall=0.5),
]


def total(spans: list[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for bucket, seconds in spans:
        found[bucket] = found.get(bucket, 0.0) + seconds
    return {bucket: seconds for bucket, seconds in found.items() if seconds}


def test_a_training_that_repeats_a_step(tmp_path: Path) -> None:
    times = JobTimes(job(tmp_path / "job", PHASES, STEPS), furthest=5)
    assert total(times.spans(15.0, "ok")) == {
        "startup": 3.0 + 2.0,
        "recomputed": 0.75,  # step 5 without its wait for data
        "data_wait": 0.75,
        "checkpoint_stall": 0.5,
        "useful": 10.0 - 2.0 - 0.75 - 0.75 - 0.5,  # the evaluation and the end of the run with it
        "commit": 1.0,
        "other": 1.0,
    }
    assert times.furthest == 7 and list(times.steps) == [1.0, 1.5]


@pytest.mark.parametrize(
    ("how", "phases", "rows", "expected"),
    [
        # Asked to stop: what follows the last step is its last checkpoint.
        ("preempted", {"started": 1, "fetched": 3}, STEPS, {"startup": 5, "checkpoint_stall": 5.5, "useful": 3.75}),
        # Killed: the step under way is lost, those before are not.
        ("failed", {"started": 1, "fetched": 3}, STEPS, {"startup": 5, "recomputed": 5, "useful": 3.75}),
        ("running", {"started": 1, "fetched": 3}, STEPS, {"startup": 5, "useful": 8.75}),
        ("failed", PHASES, [], {"startup": 3, "recomputed": 10, "commit": 1, "other": 1}),
        ("failed", {}, [], {"startup": 15}),
        # A clock that is a day ahead, and one that is behind.
        ("ok", {"started": 86400, "fetched": 86401, "ran": 86402, "committed": 86403}, [], {"startup": 15}),
        ("ok", {"started": 0, "fetched": 1, "ran": 4, "committed": 5}, [], {"startup": 1, "useful": 3, "commit": 1}),
    ],
)
def test_jobs_that_end_otherwise(
    tmp_path: Path, how: str, phases: dict[str, float], rows: Any, expected: dict[str, float]
) -> None:
    found = total(JobTimes(job(tmp_path / "job", phases, rows)).spans(15.0, how))
    assert sum(found.values()) == pytest.approx(15.0)
    for bucket, seconds in expected.items():
        assert found[bucket] == pytest.approx(seconds), bucket


def test_a_running_job_is_read_on(tmp_path: Path) -> None:
    folder = job(tmp_path / "job", {"started": 1.0, "fetched": 2.0})
    times, tracker = JobTimes(folder), JobTracker(folder / "metrics.jsonl")
    assert total(times.spans(4.0, "running")) == {"startup": 2.0, "useful": 2.0}
    for number in (1, 2, 3):
        tracker.log(number, {"seconds": 0.1, "data_wait": 0.0})
        times.spans(5.0, "running")
    assert len(times.steps) == 3


def test_steps_are_repeated_only_if_a_job_of_the_same_training_was_cut_short(tmp_path: Path) -> None:
    def left(run: str, key: str, last: int, outcome: str | None) -> Path:
        rows = [step(number, number, 1.0) for number in range(1, last + 1)]
        folder = job(tmp_path / "runs" / run / "base" / f"{key}{last}", PHASES, rows)
        (folder / "job.json").write_text(json.dumps({"store": "s", "kind": "pretrain", "key": key}))
        if outcome:
            (folder / "outcome-0.json").write_text(json.dumps({"status": outcome}))
        return folder

    left("one", "k", 4, None)
    left("one", "k", 6, "failed")
    left("one", "k", 9, "ok")
    left("two", "other", 8, None)
    assert furthest_step(left("three", "k", 0, None)) == 6
    assert furthest_step(left("three", "new", 0, None)) == 0

"""A look at the data: one run for each state of them that is worth it, whoever looks and however often."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.checks.new_data import new_data
from flows.watch import look
from infra.artifacts import ArtifactRef
from infra.errors import StageError, UsageError
from infra.open_store import open_store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.plan.resolved import resolve
from tasks.plan.watching import Entry, last_entry, only
from tasks.run import decided_run
from tasks.run.decided_run import MOST, STARTS, Fate, given_up
from tasks.run.record import RunRecord

PIPELINE = """
name: fresh
stages:
  texts:
    dataset:
      sources: [{files: "data/*.jsonl", format: jsonl, id_column: id}]
      split: {by: row, test: 0.2}
  tokens: {tokenizer: {data: texts, vocab_size: 300}}
deploy:
  watch: {quiet: 5s, min_new_rows: 10, max_age: 7d, drift: true}
"""


class Runs:
    """Starts nothing, and remembers what it was asked to start. ends: how the n-th start ended; else it goes on."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.ends: dict[int, Fate] = {}
        self.busy = False

    def start(self, entry: Entry, attempt: int) -> dict[str, Any] | None:
        if self.busy:
            return None
        self.started.append((entry.sources, attempt))
        return {"flow_run": len(self.started)}

    def fate(self, note: dict[str, Any]) -> Fate:
        return self.ends.get(note["flow_run"], Fate("under way"))


class House:
    """A folder with data and a pipeline, and someone who looks."""

    def __init__(self, folder: Path, jobs: Any) -> None:
        self.folder, self.jobs, self.runs = folder, jobs, Runs()
        self.slept: list[float] = []
        self.now = datetime.now(UTC)
        (folder / "data").mkdir()
        (folder / "p.yaml").write_text(PIPELINE)

    def write(self, name: str, texts: list[str], ids: str = "") -> None:
        rows = [json.dumps({"id": f"{ids or name}-{i}", "text": text}) for i, text in enumerate(texts)]
        (self.folder / "data" / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

    def pipeline(self) -> Pipeline:
        return load_pipeline(self.folder / "p.yaml", store=str(self.folder / "store"))

    def make(self, pipeline: Pipeline) -> dict[str, ArtifactRef]:
        """The dataset stages, run here."""
        store, made = open_store(pipeline.store), dict[str, ArtifactRef]()
        for node in pipeline.stages.values():
            resolved = resolve(node, made)
            found = store.manifest(node.stage.kind, resolved.key)
            if found is None:
                place = self.folder / "work" / resolved.key
                job = self.jobs.make_job(place, node.params, name=node.name, store=self.folder / "store")
                node.stage.run(job)
                found = store.commit(
                    kind=node.stage.kind, type=node.stage.makes, key=resolved.key, attempt=resolved.key[:8],
                    payload_dir=job.output, records_dir=job.records, shared=job.shared, identity=resolved.identity,
                )  # fmt: skip
            made[node.name] = found.ref
        assert "tokens" not in made, "only what is watched is made"
        return made

    def look(self, **given: Any) -> str:
        self.last = look(
            self.pipeline(), self.runs, self.make, **{"sleep": self.slept.append, "now": lambda: self.now, **given}
        )
        return self.last.action


WORDS = [
    "bread",
    "rain",
    "ships",
    "harbour",
    "morning",
    "paper",
    "wind",
    "stone",
    "garden",
    "letter",
    "window",
    "river",
]


def sentences(seed: int, count: int) -> list[str]:
    """Texts that are alike whatever the seed."""
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=12)) for _ in range(count)]


BASE = sentences(0, 60)


@pytest.fixture
def house(tmp_path: Path, load: Callable[[str], Any]) -> House:
    found = House(tmp_path, load("stages/jobs.py"))
    found.write("base", BASE)
    return found


def test_one_run_for_one_state_of_the_data(house: House) -> None:
    assert house.look() == "started"
    assert [house.look() for _ in range(3)] == ["unchanged"] * 3
    house.write("more", sentences(1, 10))
    assert house.look() == "started"
    assert house.last.reason == "10 new examples, 10 are enough"
    assert house.look() == "unchanged"
    assert len({sources for sources, _ in house.runs.started}) == len(house.runs.started) == 2


def test_duplicates_and_other_bytes_of_the_same_examples_start_nothing(house: House) -> None:
    house.look()
    house.write("again", BASE[:30])
    assert house.look() == "same"
    assert house.look() == "unchanged"
    shutil.copy(house.folder / "data/base.jsonl", house.folder / "data/copy.jsonl")
    assert house.look() == "same"
    assert len(house.runs.started) == 1


def test_few_new_examples_wait_for_more_or_for_age(house: House) -> None:
    house.look()
    house.write("few", sentences(9, 1))
    assert house.look() == "waits"
    assert house.last.reason == "1 new example; 10, a run 7d old, or drift would be enough"
    house.now += timedelta(days=8)
    assert house.look() == "started"
    assert "8d old" in house.last.reason
    assert len(house.runs.started) == 2


def test_age_is_not_reset_by_duplicates(house: House) -> None:
    house.look()
    house.write("again", BASE[:5])
    house.now += timedelta(days=8)
    assert house.look() == "same"
    house.write("few", sentences(9, 1))
    assert house.look() == "started"


def test_few_examples_that_differ_are_enough(house: House) -> None:
    pipeline = (house.folder / "p.yaml").read_text()
    (house.folder / "p.yaml").write_text(pipeline.replace("min_new_rows: 10", "min_new_rows: 1000"))
    house.look()
    house.write("alike", sentences(2, 40))
    assert house.look() == "waits"
    house.write(
        "other", [f"zwölf Boxkämpfer jagen Viktor quer über den Sylter Deich, zum {i}. Mal" * 3 for i in range(30)]
    )
    assert house.look() == "started"
    assert "differ from those before" in house.last.reason


def test_sources_that_do_not_stand_still_are_left_for_the_next_look(house: House) -> None:
    house.look()

    house.write("growing", sentences(4, 19))

    def grows(seconds: float) -> None:
        assert seconds == 5.0
        house.write("growing", sentences(4, len(house.slept) + 20))
        house.slept.append(seconds)

    assert house.look(sleep=grows) == "restless"
    assert house.look() == "started"


def test_sources_that_grow_while_they_are_read_start_nothing(house: House) -> None:
    house.look()
    house.write("more", sentences(1, 20))
    make = house.make

    def slow(pipeline: Pipeline) -> dict[str, ArtifactRef]:
        made = make(pipeline)
        house.write("late", sentences(3, 1))
        return made

    house.make = slow  # type: ignore[method-assign]
    assert house.look() == "restless"
    house.make = make  # type: ignore[method-assign]
    assert house.look() == "started"


def test_sources_that_vanish_are_an_error_and_nothing_is_forgotten(house: House) -> None:
    house.look()
    kept = (house.folder / "data/base.jsonl").read_bytes()
    (house.folder / "data/base.jsonl").unlink()
    with pytest.raises(StageError, match="no file matches"):
        house.look()
    (house.folder / "data/base.jsonl").write_bytes(kept)
    assert house.look() == "unchanged"


def test_a_clock_that_was_set_back_changes_nothing(house: House) -> None:
    house.look()
    house.now -= timedelta(days=400)
    house.write("few", sentences(9, 1))
    assert house.look() == "waits"
    house.write("more", sentences(1, 10))
    assert house.look() == "started"


def test_of_many_who_look_at_once_one_starts(house: House) -> None:
    house.look()
    house.write("more", sentences(1, 20))
    house.make(only(house.pipeline(), ["texts"]))
    with ThreadPoolExecutor(8) as pool:
        found = sorted(
            pool.map(lambda _: look(house.pipeline(), house.runs, house.make, sleep=lambda s: None).action, range(8))
        )
    # Whoever comes late may start the run as well, but the same one: the starter is asked for one decision and attempt.
    assert len({sources for sources, _ in house.runs.started}) == 2
    assert {attempt for _, attempt in house.runs.started} == {1}
    assert set(found) <= {"started", "elsewhere", "unchanged"}


def test_a_watcher_that_dies_between_decision_and_start_is_made_up_for(house: House) -> None:
    class Dies(Runs):
        def start(self, entry: Entry, attempt: int) -> dict[str, Any]:
            raise KeyboardInterrupt

    alive, house.runs = house.runs, Dies()
    with pytest.raises(KeyboardInterrupt):
        house.look()
    house.runs = alive
    assert house.look() == "started"
    assert house.look() == "unchanged"
    assert [attempt for _, attempt in alive.started] == [1]


def test_a_run_that_failed_is_begun_again_a_bounded_number_of_times_and_then_said(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    house.look()
    for attempt in range(2, STARTS + 1):
        house.runs.ends[attempt - 1] = Fate("failed", "the store did not answer")
        assert house.look() == "started"
        assert "the one before: failed: the store did not answer" in house.last.reason
        assert house.look() == "unchanged"
    house.runs.ends[STARTS] = Fate("failed", "crashed")
    assert [house.look(), house.look()] == ["gave up", "gave up"]
    assert f"{STARTS} runs were started for it and none did its work (the last: failed: crashed)" in house.last.reason
    assert [attempt for _, attempt in house.runs.started] == list(range(1, STARTS + 1))
    store = open_store(house.pipeline().store)
    assert given_up(store) == {"fresh": house.last.reason}
    finding = new_data(store)
    assert finding is not None and (finding.level, house.last.reason in finding.said) == ("fault", True)
    record(house, "failed")
    assert cli.main(["status", "--store", house.pipeline().store]) == 0
    assert f"fresh: new data were not trained on: {house.last.reason}" in capsys.readouterr().out


@pytest.mark.parametrize("state", ["left out", "interrupted"])
def test_a_run_that_was_left_out_or_interrupted_is_begun_again_and_costs_no_start(house: House, state: Any) -> None:
    house.look()
    for attempt in range(1, STARTS + 3):
        house.runs.ends[attempt] = Fate(state)
        assert house.look() == "started"
    house.runs.ends |= {number: Fate(state) for number in range(STARTS + 3, MOST + 1)}
    assert [house.look() for _ in range(STARTS + 3, MOST + 1)][-1] == "gave up"
    assert [attempt for _, attempt in house.runs.started] == list(range(1, MOST + 1))


def test_a_run_that_would_be_left_out_waits_for_the_next_look(house: House) -> None:
    house.runs.busy = True
    assert [house.look(), house.look()] == ["waits", "waits"]
    house.runs.busy = False
    assert [house.look(), house.look()] == ["started", "unchanged"]
    assert [attempt for _, attempt in house.runs.started] == [1]


@pytest.mark.parametrize("state", ["done", "cancelled"])
def test_how_a_run_ended_is_asked_once(house: House, state: Any) -> None:
    house.look()
    house.runs.ends[1] = Fate(state)
    assert house.look() == "unchanged"
    house.runs.ends[1] = Fate("failed", "Prefect knows the run no more")  # its database was pruned
    assert house.look() == "unchanged"
    assert len(house.runs.started) == 1


def record(house: House, status: str, *, without: str = "", overrides: tuple[str, ...] = ()) -> None:
    """A run that somebody started by hand, on the data of the last decision."""
    pipeline = replace(house.pipeline(), overrides=overrides)
    store = open_store(pipeline.store)
    entry = last_entry(store, "fresh")
    assert entry is not None
    kept = {name: node for name, node in pipeline.stages.items() if name != without}
    found = RunRecord(f"20990101-000000-{len(store.list('runs')):04}", replace(pipeline, stages=kept), store)
    for stage in found.data["stages"]:
        stage["artifact"] = entry.datasets.get(stage["name"])
    found.finish(status)


def test_data_that_another_run_trained_on_are_not_trained_on_again(house: House) -> None:
    house.look()
    house.runs.ends[1] = Fate("failed", "the store did not answer")
    record(house, "ok")
    assert house.look() == "unchanged"
    assert len(house.runs.started) == 1


def test_a_decision_that_was_given_up_is_settled_by_a_run_of_the_whole_pipeline_alone(house: House) -> None:
    house.look()
    house.runs.ends = {number: Fate("failed", "no memory") for number in range(1, STARTS + 1)}
    assert [house.look() for _ in range(STARTS)][-1] == "gave up"
    record(house, "failed")
    record(house, "ok", without="tokens")  # what a look makes of the data
    record(house, "ok", overrides=("stages.tokens.vocab_size=400",))
    open_store(house.pipeline().store).write_bytes("runs/20990101-000000-9999/run.json", b'{"status": "ok"')
    assert house.look() == "gave up"
    record(house, "ok")
    assert [house.look(), house.look()] == ["unchanged", "unchanged"]
    assert given_up(open_store(house.pipeline().store)) == {}


def test_data_that_were_given_up_are_trained_on_with_the_next_that_arrive(house: House) -> None:
    house.look()
    house.runs.ends = {number: Fate("failed", "no memory") for number in range(1, STARTS + 1)}
    assert [house.look() for _ in range(STARTS)][-1] == "gave up"
    house.write("again", BASE[:30])
    assert house.look() == "gave up", "the same examples are still not trained on"
    house.write("few", sentences(9, 1))
    assert house.look() == "started", "one is enough, though ten are asked for"
    assert house.last.reason == "1 new example, and those before them were not trained on"
    assert house.runs.started[-1][1] == 1
    assert given_up(open_store(house.pipeline().store)) == {}


def test_a_start_noted_by_an_earlier_version_counts(house: House) -> None:
    house.look()
    store = open_store(house.pipeline().store)
    for number in (1, 2, 3):
        store.write_bytes(f"journals/fresh/watch-starts-1/{number:06d}.json", b'{"flow_run": 7}')
    start = decided_run.last_start(store, "fresh", last_entry(store, "fresh") or pytest.fail())
    assert start is not None and (start.number, start.failures, start.closed) == (3, 2, None)


def test_a_pipeline_without_files_cannot_be_watched(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nstages: {words: {tokenizer: {data: 'ref:a/b', vocab_size: 300}}}\n")
    pipeline = load_pipeline(tmp_path / "p.yaml", store=str(tmp_path / "store"))
    with pytest.raises(UsageError, match="reads files"):
        look(pipeline, Runs(), lambda one: {})

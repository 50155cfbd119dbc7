"""A look at the data: one run for each state of them that is worth it, whoever looks and however often."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from flows.watch import look
from infra.artifacts import ArtifactRef
from infra.errors import StageError, UsageError
from infra.store import Store
from tasks.pipeline import Pipeline, load_pipeline
from tasks.plan import resolve
from tasks.watching import STARTS, Entry, only

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
    """Starts nothing, and remembers what it was asked to start."""

    def __init__(self) -> None:
        self.started: list[tuple[str, int]] = []
        self.dead: set[int] = set()

    def start(self, entry: Entry, attempt: int) -> dict[str, Any]:
        self.started.append((entry.sources, attempt))
        return {"flow_run": len(self.started)}

    def crashed(self, note: dict[str, Any]) -> bool:
        return note["flow_run"] in self.dead


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
        store, made = Store.open(pipeline.store), dict[str, ArtifactRef]()
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


def test_a_run_that_crashed_is_started_again_a_bounded_number_of_times(house: House) -> None:
    house.look()
    for attempt in range(2, STARTS + 1):
        house.runs.dead.add(attempt - 1)
        assert house.look() == "started"
        assert house.look() == "unchanged"
    house.runs.dead.add(STARTS)
    assert house.look() == "unchanged"
    assert [attempt for _, attempt in house.runs.started] == list(range(1, STARTS + 1))


def test_a_pipeline_without_files_cannot_be_watched(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("name: p\nstages: {words: {tokenizer: {data: 'ref:a/b', vocab_size: 300}}}\n")
    pipeline = load_pipeline(tmp_path / "p.yaml", store=str(tmp_path / "store"))
    with pytest.raises(UsageError, match="reads files"):
        look(pipeline, Runs(), lambda one: {})

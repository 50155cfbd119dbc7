"""The budget: which limit is reached first, what is not started any more, and how a stop reaches stages."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from flows.budget import watch_budget
from infra import refs
from infra.budget import Budget, Spent
from infra.errors import ConfigError, Preempted
from infra.launch.local import LocalLauncher
from infra.launch.slots import Slots
from infra.open_store import open_store
from infra.store import Store
from infra.wandb_replay import WandbReplay
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.run.context import RunContext
from tasks.run.execute import execute_stage
from tasks.run.record import RunRecord, spent_by

PIPELINE = """\
name: demo
tracking: {mode: disabled}
stages:
  corpus:
    dataset: {sources: [{files: "texts/*.txt", format: text}]}
  words:
    tokenizer: {data: corpus, vocab_size: 300}
  tokens:
    pack: {data: corpus, tokenizer: words, context: 16}
  base:
    pretrain:
      data: tokens
      objective: causal_lm
      model: {type: llama, hidden_size: 16}
      max_steps: 4
      global_batch_size: 8
"""


IDENTITY = {"kind": "", "version": 0, "params": {}, "inputs": [], "sources": None}


def load(folder: Path, *overrides: str, text: str = PIPELINE) -> Pipeline:
    path = folder / "p.yaml"
    path.write_text(text)
    (folder / "texts").mkdir(exist_ok=True)
    (folder / "texts/one.txt").write_text("one text\n\nanother text\n")
    return load_pipeline(path, list(overrides), str(folder / "store"))


@pytest.mark.parametrize(
    ("budget", "spent", "more", "reached"),
    [
        ({"hours": 2}, Spent(7000), Spent(199), ""),
        ({"hours": 2}, Spent(7000), Spent(200), "the budget of 2 hours (1.94 spent)"),
        ({"core_hours": 1}, Spent(9000, 1800), Spent(60, 240), ""),
        ({"core_hours": 1}, Spent(1800, 3500), Spent(60, 120), "the budget of 1 core hours (0.972 spent)"),
        ({"gpu_hours": 1}, Spent(9000, 9000, 3599), Spent(1, 1, 1), "the budget of 1 gpu hours (1 spent)"),
        # 2 core hours at 0.5 and 1.5 GPU hours at 2 are 4.
        ({"money": 4, "price_per_core_hour": 0.5, "price_per_gpu_hour": 2}, Spent(0, 7200, 5399), Spent(), ""),
        (
            {"money": 4, "price_per_core_hour": 0.5, "price_per_gpu_hour": 2},
            Spent(0, 7200, 5390),
            Spent(0, 0, 10),
            "the budget of 4 money (3.99 spent)",
        ),
        ({"price_per_core_hour": 9}, Spent(1e9, 1e9), Spent(1e9), ""),
    ],
)
def test_which_limit_is_reached(budget: dict[str, float], spent: Spent, more: Spent, reached: str) -> None:
    assert Budget(**budget).over(spent, more) == reached


def test_budgets_that_cannot_be_kept_are_refused_where_they_stand(tmp_path: Path) -> None:
    text = PIPELINE + "budget: {money: 5, hours: 2}\n"
    with pytest.raises(ConfigError, match=r"p\.yaml:17: budget: .*price_per_core_hour"):
        load(tmp_path, text=text)
    with pytest.raises(ConfigError, match="no more than the reserve of 60 s"):
        load(tmp_path, "budget.hours=0.01")
    assert load(tmp_path, "budget.hours=0.01", "budget.reserve=5").budget.hours == 0.01


def test_the_environment_may_set_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_PRICE", "0.04")
    pipeline = load(tmp_path, text=PIPELINE + "budget: {price_per_core_hour: '${env:CORE_PRICE}'}\n")
    assert pipeline.budget == Budget(price_per_core_hour=0.04) and not pipeline.budget.limited


@pytest.fixture
def context(tmp_path: Path) -> Any:
    launcher = LocalLauncher(tmp_path)
    yield RunContext(
        run="one",
        pipeline="demo",
        store=open_store(str(tmp_path / "store")),
        launcher=launcher,
        slots=Slots(2),
        folder=tmp_path / "run",
        producer={},
        notify=lambda *args, **news: None,
        tracking=WandbReplay(load(tmp_path).tracking, project="p", group="one", folder=tmp_path),
    )
    launcher.close()


def made(store: Store, folder: Path, kind: str, type: str, name: str, seconds: float) -> None:
    """A stage's artifact of an earlier run, which took so long."""
    (folder / "payload").mkdir(exist_ok=True)
    (folder / "payload/file").write_text(name)
    given = {"kind": kind, "type": type, "key": name * 8, "attempt": "one", "payload_dir": folder / "payload"}
    manifest = store.commit(**given, identity=IDENTITY, timings={"fetch": 0.0, "run": seconds})
    refs.advance(store, f"demo/{name}/latest", manifest.ref)


def test_what_cannot_be_done_within_the_rest_is_not_started(tmp_path: Path, context: RunContext) -> None:
    pipeline = load(tmp_path, "budget.hours=1", "budget.reserve=1")
    record = RunRecord("one", pipeline, context.store)
    ended = threading.Event()
    watch_budget(record, context, ended)
    ended.set()
    corpus, base = pipeline.stages["corpus"], pipeline.stages["base"]
    assert context.may_start(corpus) == "", "nothing is known of it"
    made(context.store, tmp_path, "dataset", "dataset", "corpus", 3590.0)
    assert context.may_start(corpus) == ""
    made(context.store, tmp_path, "pretrain", "model", "base", 36000.0)
    assert context.may_start(base) == "", "a training run keeps what it has done"

    late = RunRecord("two", pipeline, context.store, already=Spent(30.0))
    watch_budget(late, context, ended)
    assert "too much for the budget of 1 hours (0.008" in context.may_start(corpus)
    assert late.data["stopped"].startswith("the budget of 1 hours")
    with pytest.raises(Preempted, match="not started: it takes at least 1 h"):
        execute_stage(corpus, {}, context)
    assert not list(context.folder.glob("*/*/job.json"))


def test_a_stop_ends_waiting_and_starts_nothing(tmp_path: Path, context: RunContext) -> None:
    pipeline = load(tmp_path)
    found: list[BaseException] = []

    def wait_for_a_slot() -> None:
        try:
            execute_stage(pipeline.stages["corpus"], {}, context)
        except Preempted as error:
            found.append(error)

    with context.slots.hold(2, threading.Event()):
        thread = threading.Thread(target=wait_for_a_slot)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        context.stop("stopped by the budget of 2 hours (1.99 spent)", 60.0)
        thread.join(10.0)
    assert "not started: stopped by the budget of 2 hours" in str(found[0])
    assert not context.cancelled.is_set(), "who runs may save its state"


def test_the_watch_stops_a_run_before_the_limit(tmp_path: Path, context: RunContext) -> None:
    pipeline = load(tmp_path, "budget.core_hours=0.001", "budget.reserve=1")  # 3.6 core seconds, two cores at once
    record, ended = RunRecord("one", pipeline, context.store), threading.Event()
    (tmp_path / "job").mkdir()
    record.times.news("corpus", state="running", folder=tmp_path / "job", slots=2, gpus=0)
    watch_budget(record, context, ended)
    assert context.stopping.wait(10.0)
    spent = record.times.spent().core_seconds
    ended.set()
    assert spent < 3.6 and context.grace == 1.0
    assert record.data["stopped"].startswith("the budget of 0.001 core hours")
    record.finish("interrupted")
    stored = context.store.read_json("runs/one/run.json")
    assert stored["stopped"] == record.data["stopped"] and stored["budget"]["core_hours"] == 0.001
    assert stored["ledger"]["core_seconds"] == pytest.approx(spent, abs=0.5)


def test_the_rounds_of_a_search_share_the_budget(tmp_path: Path, context: RunContext) -> None:
    pipeline, rounds = load(tmp_path), list[RunRecord]()
    for name in ("one", "two"):
        rounds.append(RunRecord(name, pipeline, context.store, spent_by(rounds)))
        time.sleep(0.2)
        rounds[-1].finish("ok")
    time.sleep(0.2)
    walls = [record.data["seconds"] for record in rounds]
    assert spent_by(rounds).seconds == pytest.approx(sum(walls)) and sum(walls) == pytest.approx(0.4, abs=0.15)
    third = RunRecord("three", pipeline, context.store, spent_by(rounds))
    assert third.spent().seconds == pytest.approx(sum(walls), abs=0.1)

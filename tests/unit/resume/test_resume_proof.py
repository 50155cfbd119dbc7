"""What `forgeline doctor resume` calls the same training, and what it does not."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from infra.checkpoints import CheckpointStore
from infra.errors import StageError
from infra.keys import file_digest
from infra.launch.launcher import JobSpec
from infra.open_store import open_store
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.node import StageNode
from tasks.resume.check import on_other_ranks, shortened
from tasks.resume.proof import Trained, compare
from tasks.resume.watched_run import WatchedRun

WEIGHTS = {"a": np.array([[3.0, 4.0]], np.float32), "b": np.array([12.0], np.float32)}
"""L2 norm: 13."""


def steps() -> list[dict[str, Any]]:
    return [
        {"step": n, "loss": 4.0 / n, "learning_rate": 0.1 / n, "tokens_per_second": 100.0 * n, "seconds": 2.0 / n}
        for n in range(1, 9)
    ]


def trained(folder: Path, weights: dict[str, Any], entries: list[dict[str, Any]], card: str = "{}") -> Trained:
    folder.mkdir()
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(card)
    return Trained(folder, {path.name: file_digest(path) for path in folder.iterdir()}, entries)


@pytest.fixture
def undisturbed(tmp_path: Path) -> Trained:
    return trained(tmp_path / "undisturbed", WEIGHTS, steps())


def test_the_same_bits_are_the_same_training(undisturbed: Trained, tmp_path: Path) -> None:
    for tolerance in (0.0, 1e-3):
        found = compare(undisturbed, trained(tmp_path / str(tolerance), WEIGHTS, steps()), tolerance=tolerance)
        assert found.faults == [] and found.bitwise_equal
        assert (found.loss_difference, found.weight_difference, found.largest_weight_difference) == (0, 0, 0)


def test_what_rounds_differently_is_within_a_tolerance_but_not_the_same_bits(
    undisturbed: Trained, tmp_path: Path
) -> None:
    entries = steps()
    entries[5]["loss"] *= 1 + 2e-4
    weights = {**WEIGHTS, "b": np.array([12.0 + 13 / 4096], np.float32)}  # exact in fp32
    other = trained(tmp_path / "other", weights, entries)
    near = compare(undisturbed, other, tolerance=1e-3)
    assert near.faults == [] and not near.bitwise_equal
    assert near.loss_difference == pytest.approx(2e-4)
    assert near.weight_difference == pytest.approx(1 / 4096)
    assert near.largest_weight_difference == pytest.approx(13 / 4096)
    assert compare(undisturbed, other, tolerance=0.0).faults == [
        "another loss at step 6",
        "other weights: 0.00024 of their norm, one by 0.0032",
    ]
    assert [fault.split(":")[0] for fault in compare(undisturbed, other, tolerance=1e-4).faults] == [
        "another loss at step 6",
        "other weights",
    ]


def change(entry: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**entry, **values}


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], list[dict[str, Any]]], str]] = {
    "a step lost": (lambda e: e[:3] + e[4:], "step 4 not recorded"),
    "a step done twice": (lambda e: [*e[:4], *e[3:]], "step 4 recorded more than once"),
    "a step too many": (
        lambda e: [*e, change(e[-1], step=9)],
        "step 9 recorded, which the undisturbed run does not have",
    ),
    "the schedule started again": (
        lambda e: [*e[:4], change(e[4], learning_rate=0.1), *e[5:]],
        "another learning rate",
    ),
    "other examples": (lambda e: [*e[:4], change(e[4], seconds=1.0), *e[5:]], "another number of tokens at step 5"),
    "other examples, counted": (
        lambda e: [change(x, tokens=200 - (x["step"] == 8)) for x in e],
        "another number of tokens at step 8",
    ),
    "another loss": (lambda e: [*e[:4], change(e[4], loss=0.9), *e[5:]], "another loss at step 5"),
    "no number": (lambda e: [*e[:4], change(e[4], loss=float("nan")), *e[5:]], "another loss at step 5"),
    "many": (lambda e: [change(x, loss=9.0) for x in e], "another loss at step 1, 2, 3, 4, 5 and 3 more"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tolerance", [0.0, 1e-3])
def test_a_step_that_went_wrong_is_named(undisturbed: Trained, tmp_path: Path, fault: str, tolerance: float) -> None:
    broken, said = FAULTS[fault]
    entries = [change(e, tokens=200) for e in steps()] if "counted" in fault else steps()
    found = compare(
        dataclasses.replace(undisturbed, steps=entries),
        trained(tmp_path / "broken", WEIGHTS, broken(entries)),
        tolerance=tolerance,
    )
    assert len(found.faults) == 1 and found.faults[0].startswith(said)


def test_what_cannot_be_compared_is_not_the_same(undisturbed: Trained, tmp_path: Path) -> None:
    shape = trained(tmp_path / "shape", {**WEIGHTS, "a": np.zeros((2, 2), np.float32)}, steps())
    name = trained(tmp_path / "name", {"a": WEIGHTS["a"], "c": WEIGHTS["b"]}, steps())
    nan = trained(tmp_path / "nan", {**WEIGHTS, "b": np.array([np.nan], np.float32)}, steps())
    for other in (shape, name, nan):
        found = compare(undisturbed, other, tolerance=1e-3)
        assert [fault.split(":")[0] for fault in found.faults] == ["other weights"]
        assert found.weight_difference is None and not found.bitwise_equal
    card = trained(tmp_path / "card", WEIGHTS, steps(), card='{"dtype": "bfloat16"}')
    assert compare(undisturbed, card, tolerance=1e-3).faults == ["other bytes in config.json"]
    silent = dataclasses.replace(undisturbed, steps=[])
    assert compare(silent, silent, tolerance=1e-3).faults == [
        "the undisturbed run recorded no step in records/train.jsonl"
    ]
    assert not compare(silent, silent, tolerance=0.0).bitwise_equal


def node(folder: Path, execution: str, batch: int = 8) -> StageNode:
    file = folder / "pipeline.yaml"
    file.write_text(f"""
name: p
stages:
  corpus: {{dataset: {{sources: [{{files: "*.py"}}]}}}}
  model:
    prune:
      model: ref:p/model
      data: corpus
      heal: {{epochs: 2, eval_every: 3, global_batch_size: {batch}}}
execution: {{model: {execution}}}
""")
    return load_pipeline(file).stages["model"]


def test_a_training_within_a_stage_is_cut_short(tmp_path: Path) -> None:
    params = node(tmp_path, "{}").params
    heal = params.heal.model_copy(update={"max_steps": 20, "epochs": None, "eval_every": 0})
    assert shortened(params, 20) == params.model_copy(update={"heal": heal})
    type(params).model_validate(shortened(params, 20).model_dump(by_alias=True))


def test_a_training_that_keeps_its_best_weights_is_still_evaluated(tmp_path: Path) -> None:
    """Cut short it is what a job can read, and its patience does not end it before it is killed."""
    params = node(tmp_path, "{}").params
    chosen = {"eval_every": 300, "keep": "best", "patience": 2}
    given = params.model_copy(update={"heal": params.heal.model_copy(update=chosen)})
    read = type(params).model_validate(shortened(given, 20).model_dump(by_alias=True))
    assert (read.heal.eval_every, read.heal.keep, read.heal.patience) == (5, "best", 20)


@pytest.mark.parametrize(
    ("execution", "batch", "expected"),
    [
        ("{}", 8, (4, 2)),
        ("{per_device_train_batch_size: 2}", 8, (2, 2)),
        ("{per_device_train_batch_size: 6}", 18, (3, 2)),
        ("{processes: 2}", 8, (4, 1)),
        ("{processes: 8, per_device_train_batch_size: 1}", 8, (1, 4)),
        ("{processes: 3}", 9, (3, 1)),
    ],
)
def test_both_layouts_share_a_micro_batch_no_larger_than_the_users(
    tmp_path: Path, execution: str, batch: int, expected: tuple[int, int]
) -> None:
    given = node(tmp_path, execution, batch)
    found = on_other_ranks(given)
    assert not isinstance(found, str)
    micro, ranks = expected
    same = {"per_device_train_batch_size": micro}
    assert found[0] == given.execution.model_copy(update=same)
    assert found[1] == given.execution.model_copy(update={**same, "processes": ranks})


def test_a_batch_that_does_not_divide_is_a_reason(tmp_path: Path) -> None:
    assert on_other_ranks(node(tmp_path, "{}", 7)) == "global_batch_size 7 does not divide over 2 ranks"


def test_a_checkpoint_that_never_comes_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Job:
        pid = None

        def logs(self) -> str:
            return "no space left"

    checkpoints = CheckpointStore(open_store(str(tmp_path / "store")), "pretrain", "k")
    run = WatchedRun(None, checkpoints, kill_after=4)  # type: ignore[arg-type]
    run.spec, run.job = JobSpec("base", tmp_path), Job()  # type: ignore[assignment]
    run.notify("base", poll=True)
    (tmp_path / "standing.json").write_text(json.dumps({"step": 6, "time": 0.0}))
    with pytest.raises(StageError, match=r"(?s)no checkpoint of step 4 .*no space left"):
        run.notify("base", poll=True)
    assert not run.killed

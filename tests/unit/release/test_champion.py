"""A champion and its challenger: who is compared with whom, run after run, and how a name moves and moves back."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from infra import refs
from infra.artifacts import ArtifactRef, Manifest
from infra.errors import ConfigError, StageError, UsageError
from infra.open_store import open_store
from infra.refs import RefConflict
from tasks.data.dataset.new_rows import new_rows
from tasks.evaluation.champion import judged_before
from tasks.plan.plan import make_plan
from tasks.release.gate.judging import judge, verdict_on
from tasks.release.gate.requirement import Requirement
from tasks.release.promotion.refs import promote, roll_back
from tasks.stage import InputArtifact


@pytest.fixture
def house(load: Any, tmp_path: Path) -> Any:
    return load("unit/house.py").House(tmp_path)


def test_what_was_promoted_is_found_made_when_the_pipeline_runs_again(house: Any) -> None:
    assert "scores" in house.run()
    first = house.champion()
    assert house.actions() == {"reuse"}, "neither its own champion nor its own weights make it run again"
    assert house.run() == []
    house.data("second")
    assert house.run() == ["texts", "model", "onnx", "scores", "gate", "ship"]
    assert house.champion() != first
    assert house.actions() == {"reuse"}
    assert house.input_of("evaluate", "champion") == [first]
    assert house.input_of("finetune", "model") == [house.manifests_by_stage(first)]


def test_a_refused_challenger_leaves_champion_and_weights(house: Any) -> None:
    house.run()
    first = house.champion()
    house.data("second")
    house.run(passes=False)
    assert house.champion() == first
    house.data("third")
    assert "model" in house.run()
    assert house.input_of("evaluate", "champion") == [first]


def test_a_roll_back_is_not_undone_and_is_what_the_next_challenger_meets(house: Any) -> None:
    house.run()
    first, weights = house.champion(), refs.get(house.store, "fresh/production-weights")
    house.data("second")
    house.run()
    moves = roll_back(house.store, "fresh/production", None, "too slow")
    assert [move.ref for move in moves] == ["fresh/production", "fresh/production-weights"]
    assert house.champion() == first
    now = refs.get(house.store, "fresh/production-weights")
    assert weights and now and now.artifact == weights.artifact
    assert house.run() == [], "the same data are not trained on again"
    assert house.champion() == first
    house.data("third")
    house.run()
    assert house.input_of("evaluate", "champion") == [first]


def test_what_only_a_first_run_needs_is_not_made_again(house: Any) -> None:
    assert {"corpus", "words", "tokens", "base"} < set(house.run())
    (house.folder / "corpus.txt").write_text("another corpus, on which nothing is trained any more")
    house.data("second")
    assert house.run() == ["texts", "model", "onnx", "scores", "gate", "ship"]
    said = {line.node.name: (line.action, line.reason) for line in make_plan(house.pipeline(), house.store)}
    assert {said[name] for name in ("corpus", "words", "tokens", "base")} == {
        ("skip", "not needed: a ref takes its place")
    }
    assert said["model"][0] == "reuse"


def test_a_challenger_is_held_against_who_is_none_of_those_beside_it(house: Any) -> None:
    """Production may be at one model of the evaluation while another of it is released."""
    house.run()
    first = refs.get(house.store, "fresh/production")
    assert first
    (house.folder / "other").mkdir()
    (house.folder / "other/model").write_text("other")
    other = house.store.commit(
        kind="export", type="onnx", key="d" * 64, attempt="a", payload_dir=house.folder / "other", identity={}
    ).ref
    judged = {"digest": None, "challengers": [other.digest, first.digest]}
    release = {"ref": "fresh/production", "model": vars(other), "champion": judged}
    assert promote(house.store, release, "release x") and house.champion() == other.digest


def test_a_challenger_of_a_champion_that_is_gone_is_not_published(house: Any) -> None:
    house.run()
    house.data("second")
    entry = refs.get(house.store, "fresh/production")
    assert entry
    other = ArtifactRef("export", "f" * 64, "e" * 64, "onnx")
    refs.advance(house.store, "fresh/production", other, note="another run was faster")
    release = {"ref": "fresh/production", "model": vars(ArtifactRef("export", "d" * 64, "c" * 64, "onnx"))}
    release["champion"] = {"digest": entry.digest, "challengers": ["c" * 64]}
    with pytest.raises(RefConflict, match=r"another champion was being challenged\n.*Run the pipeline again"):
        promote(house.store, release, "release x")
    assert house.champion() == other.digest


def test_of_those_who_move_a_name_at_once_each_but_one_is_told(house: Any) -> None:
    house.run()
    house.data("second")
    house.run()

    def back(_: int) -> str:
        try:
            roll_back(house.store, "fresh/production", 1, "")
        except (RefConflict, UsageError):  # it was moving, or there already
            return "told"
        return "moved"

    before = len(refs.history(house.store, "fresh/production"))
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(back, range(6)))
    assert len(refs.history(house.store, "fresh/production")) - before == found.count("moved") >= 1


def test_moves_by_hand_need_a_verdict_or_a_reason(house: Any, capsys: pytest.CaptureFixture[str]) -> None:
    house.run()
    store = str(house.folder / "store")
    for name, kind in (("fresh/other/latest", "finetune"), ("fresh/onnx/latest", "export")):
        refs.advance(house.store, name, house.manifests(kind)[0].ref)
    given = ["promote", "fresh/production", "fresh/other/latest", "--store", store]
    assert main(given) == 2 and "which gate let it through?" in capsys.readouterr().err
    assert main([*given, "--force"]) == 2 and "needs a reason" in capsys.readouterr().err
    assert main([*given, "--force", "--reason", "an experiment"]) == 0
    assert refs.history(house.store, "fresh/production")[0].note == "forced: an experiment"
    verdict = {"passed": False, "candidate": {"name": "onnx", "digest": house.manifests("export")[0].digest}}
    verdict["requirements"] = [{"passed": False, "sentence": "It is worse."}]
    (house.folder / "verdict").mkdir()
    (house.folder / "verdict/verdict.json").write_text(json.dumps(verdict))
    made = house.store.commit(
        kind="gate", type="verdict", key="9" * 64, attempt="a", payload_dir=house.folder / "verdict", identity={}
    )
    refs.advance(house.store, "fresh/gate/latest", made.ref)
    by_verdict = ["--verdict", "fresh/gate/latest"]
    assert main([*given, *by_verdict]) == 2 and "not on this model" in capsys.readouterr().err
    onnx = ["promote", "fresh/production", "fresh/onnx/latest", "--store", store]
    assert main([*onnx, *by_verdict]) == 4 and "It is worse." in capsys.readouterr().err
    assert main(onnx) == 4 and "fresh/gate/latest (entry 1)" in capsys.readouterr().err, "it is found without a name"
    (house.folder / "verdict/verdict.json").write_text(json.dumps({**verdict, "passed": True, "requirements": []}))
    better = house.store.commit(
        kind="gate", type="verdict", key="8" * 64, attempt="a", payload_dir=house.folder / "verdict", identity={}
    )
    refs.advance(house.store, "fresh/gate/latest", better.ref)
    key = house.manifests("export")[0].key
    assert main(["promote", "fresh/staging", f"export/{key[:10]}", "--store", store]) == 0
    assert refs.history(house.store, "fresh/staging")[0].note == "by hand, on fresh/gate/latest (entry 2)"
    assert main(["promote", "fresh/staging", "fresh/gate/latest", "--store", store]) == 2
    assert "is a verdict" in capsys.readouterr().err
    assert main(["rollback", "fresh/production", "--store", store, "--reason", "no more"]) == 0
    assert re.search(r"fresh/production: finetune .* \(entry 2\) -> export .* \(entry 3\)", capsys.readouterr().out)
    assert main(["rollback", "fresh/nothing", "--store", store]) == 2
    forced = ["promote", "fresh/texts/latest", "fresh/onnx/latest", "--force", "--reason", "no", "--store", store]
    capsys.readouterr()
    assert main(forced) == 2
    assert "fresh/texts/latest is what a stage made last, which every run moves" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("or base", "or bsae", "no stage named 'bsae'; did you mean base?"),
        ("or base", "or texts", "'texts' makes a dataset, but a model is needed here"),
        ("or base", "or onnx", "stages need each other in a circle"),
    ],
)
def test_a_stage_that_stands_in_is_checked_as_any_other(house: Any, old: str, new: str, says: str) -> None:
    (house.folder / "p.yaml").write_text((house.folder / "p.yaml").read_text().replace(old, new))
    with pytest.raises(ConfigError, match=re.escape(says)):
        house.pipeline()


def scores(*, there: bool, n: dict[str, int] | None = None) -> dict[str, Any]:
    metrics = {"accuracy": {"value": 0.8, "greater_is_better": True}}
    metrics |= {f"accuracy[since={name}]": {"value": 0.7, "greater_is_better": True} for name in n or {}}
    one = {"metrics": metrics, "artifact": {"digest": "a"}}
    return {
        "models": {"int8": one, **({"champion": one} if there else {})},
        "champion": {"ref": "fresh/production", "there": there, "told": ""},
        "data": {}, "resamples": 100,
        **({"slices": {"since": {"n": n, "min_examples": 1}}} if n else {}),
    }  # fmt: skip


@pytest.mark.parametrize("metric", ["accuracy", "accuracy[since=known]", "accuracy[since=*]", "accuracy[since=new]"])
def test_before_there_is_a_champion_nothing_is_compared_with_it(metric: str) -> None:
    outcome = judge(Requirement(metric=metric, max_drop=0.0), scores(there=False), {}, "int8", "champion")
    assert outcome.passed and outcome.bound is None
    assert outcome.sentence == f"{metric} (max_drop) does not apply: fresh/production points to no model yet."
    assert verdict_on("int8", "champion", scores(there=False), "d", [outcome])["against"] is None
    low = judge(Requirement(metric="accuracy", min=0.9), scores(there=False), {}, "int8", "champion")
    assert not low.passed


def test_what_asks_about_new_examples_where_there_are_none_does_not_apply() -> None:
    requirement = Requirement(metric="accuracy[since=new]", max_drop=0.0)
    found = judge(requirement, scores(there=True, n={"known": 40}), {}, "int8", "champion")
    assert found.passed and "no example is new" in found.sentence
    found = judge(requirement, scores(there=True, n={"known": 40, "new": 3}), {}, "int8", "champion")
    assert found.passed and found.bound == 0.0


class Datasets:
    """Datasets of named examples, and a champion that was trained on one of them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store, self.count = folder, open_store(str(folder / "store")), 0

    def dataset(
        self, rows: dict[str, str], *, test_version: int = 0, photos: dict[str, bytes] | None = None
    ) -> InputArtifact:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.count += 1
        place = self.folder / str(self.count)
        (place / "test").mkdir(parents=True)
        columns: dict[str, list[Any]] = {"id": list(rows), "text": list(rows.values())}
        if photos is not None:
            columns["photo"] = [photos[name] for name in rows]
        pq.write_table(pa.table(columns), place / "test/a.parquet")
        description = {"splits": {"test": len(rows)}, "labels": None, "columns": list(columns)}
        (place / "dataset.json").write_text(json.dumps(description))
        manifest = self.store.commit(
            kind="dataset", type="dataset", key=f"{self.count:064d}", attempt="a", payload_dir=place,
            identity={"params": {"split": {"test_version": test_version}}},
        )  # fmt: skip
        return InputArtifact("texts", self.store.fetch(manifest), manifest, "test")

    def champion(self, data: InputArtifact) -> Manifest:
        (self.folder / "model").mkdir(exist_ok=True)
        (self.folder / "model/w").write_text("w")
        entry = {**vars(data.manifest.ref), "stage": "texts", "split": None}
        made = [("finetune", {"data": [entry]})]
        for kind, inputs in made:
            model = self.store.commit(
                kind=kind, type="model", key="1" * 64, attempt="a", payload_dir=self.folder / "model", identity={},
                inputs=inputs,
            )  # fmt: skip
        above = {**vars(model.ref), "stage": "model", "split": None}
        return self.store.commit(
            kind="export", type="onnx", key="2" * 64, attempt="a", payload_dir=self.folder / "model", identity={},
            inputs={"model": [above]},
        )  # fmt: skip


def test_known_and_new_examples(tmp_path: Path) -> None:
    made = Datasets(tmp_path)
    champion = made.champion(made.dataset({"a": "one", "b": "two"}))
    now = made.dataset({"a": "one", "c": "two", "d": "three"})
    found = judged_before(made.store, champion, now, "test")
    assert found.mask.tolist() == [True, True, False], "b's text is there under another name"
    assert {name: int(mask.sum()) for name, mask in found.masks.items()} == {"known": 2, "new": 1}


def test_pictures_without_texts_are_told_from_each_other(tmp_path: Path) -> None:
    """Their text is empty, all alike: what makes two rows equal is text and columns."""
    made = Datasets(tmp_path)
    champion = made.champion(made.dataset({"a": "", "b": ""}, photos={"a": b"one", "b": b"two"}))
    now = made.dataset({"a": "", "c": "", "d": ""}, photos={"a": b"one", "c": b"two", "d": b"three"})
    assert judged_before(made.store, champion, now, "test").mask.tolist() == [True, True, False]
    lost = made.dataset({"a": "", "d": ""}, photos={"a": b"one", "d": b"three"})
    with pytest.raises(StageError, match=r"1 of the 2 examples the champion was judged on are not in texts.test: b"):
        judged_before(made.store, champion, lost, "test")


def test_new_pictures_are_new_rows(tmp_path: Path) -> None:
    made = Datasets(tmp_path)
    old = made.dataset({"a": "", "b": ""}, photos={"a": b"one", "b": b"two"}).manifest
    new = made.dataset({"a": "", "b": "", "c": "", "d": ""}, photos={"a": b"one", "b": b"2", "c": b"two", "d": b"3"})
    found = new_rows(made.store, new.manifest, old)
    assert [row["id"] for row in found] == ["b", "d"], "c repeats a picture; b has another one now"
    without = made.dataset({"a": "", "b": ""}).manifest
    assert [row["id"] for row in new_rows(made.store, new.manifest, without)] == ["c", "d"], (
        "nothing but ids is in both"
    )


def test_examples_that_are_gone_are_an_error_unless_the_test_split_was_begun_again(tmp_path: Path) -> None:
    made = Datasets(tmp_path)
    champion = made.champion(made.dataset({"a": "one", "b": "two"}))
    with pytest.raises(StageError, match=r"1 of the 2 examples the champion was judged on are not in texts.test: b"):
        judged_before(made.store, champion, made.dataset({"a": "one", "c": "other"}), "test")
    again = judged_before(made.store, champion, made.dataset({"a": "one"}, test_version=1), "test")
    assert not again.mask.any() and list(again.masks) == ["new"]


def test_a_champion_whose_test_set_is_gone_says_so(tmp_path: Path) -> None:
    made = Datasets(tmp_path)
    old = made.dataset({"a": "one"})
    champion = made.champion(old)
    made.store.delete(f"{old.manifest.ref.prefix}/manifest.json")
    with pytest.raises(StageError, match="is no longer in the store"):
        judged_before(made.store, champion, made.dataset({"a": "one", "b": "two"}), "test")

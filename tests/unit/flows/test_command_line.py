"""The terminal says what matters: why a gate refused, which store was looked into, what a mistyped word may have meant."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from flows import cli


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    try:
        code = cli.main(words)
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_refusal_says_the_requirement_and_its_numbers(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / "home"))
    module = load("unit/house.py")
    house = module.House(tmp_path)
    house.run(passes=False)
    file, store = str(tmp_path / "p.yaml"), str(tmp_path / "store")
    code, out, said = run(capsys, "run", file, "--store", store, "--json", "--no-report")
    assert code == 4
    assert f"forgeline: gate gate refused: {module.NO}\n" in said and "size_mb" not in said
    stages = {stage["name"]: stage for stage in json.loads(out)["stages"]}
    assert stages["gate"]["refusal"] == [module.NO] and stages["scores"]["refusal"] == []
    assert f"    refused: {module.NO}\n" in run(capsys, "status", "--store", store)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [(["stauts"], "unknown command 'stauts'; did you mean status?"), (["doctor", "resum"], "did you mean resume?"),
     (["plan", "p.yaml", "--verfy"], "unknown option '--verfy'; did you mean --verify?"),
     (["run", "p.yaml", "--sett=a=b"], "unknown option '--sett'; did you mean --set?"),
     (["status", "--stroe", "x"], "unknown option '--stroe'; did you mean --store?"),
     (["gc", "--delet"], "unknown option '--delet'; did you mean --delete?"),
     (["--verison"], "unknown option '--verison'; did you mean --version?"),
     ([], "which command? They are validate,"), (["p.yaml"], "'p.yaml' is no command; write forgeline run p.yaml"),
     (["show"], "the following arguments are required: ref"), (["show", "a", "b"], "'b' is more than `forgeline show` takes")],
)  # fmt: skip
def test_a_word_that_is_not_known_is_met_with_one_that_is(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, error = run(capsys, *words)
    assert code == 2 and not out
    assert error.startswith("forgeline: ") and said in error.splitlines()[0] and "--help" in error
    assert len(error.splitlines()) == 2, "no usage of twenty commands above it"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--version")
    assert code == 0
    assert re.fullmatch(rf"forgeline {re.escape(version('forgeline'))} \(Python \d+\.\d+\.\d+\S*\)\n", out)


def test_commands_say_which_store_they_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORGELINE_STORE", raising=False)
    here = f"store: .forgeline/store, the default in {tmp_path}; --store names another"
    assert here in run(capsys, "show", "a/b")[2] and here in run(capsys, "status")[2]
    assert "store:" not in run(capsys, "show", "a/b", "--store", str(tmp_path / "other"))[2]
    (tmp_path / "p.yaml").write_text("name: p\nstages: {a: {dataset: {sources: [{files: p.yaml}]}}}\nstore: mine\n")
    assert run(capsys, "plan", "p.yaml")[2] == "store: mine\n"
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "named"))
    code, _, said = run(capsys, "logs", "latest")
    assert code == 2 and f"store: {tmp_path}/named, as $FORGELINE_STORE says; --store names another" in said


def test_the_environment_is_the_store_of_a_file_that_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FORGELINE_STORE", raising=False)
    text = "name: p\nstages: {a: {dataset: {sources: [{files: p.yaml}]}}}\n"
    (tmp_path / "p.yaml").write_text(text)
    assert run(capsys, "plan", "p.yaml")[2] == f"store: .forgeline/store, the default in {tmp_path}\n"
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "named"))
    assert run(capsys, "plan", "p.yaml")[2] == f"store: {tmp_path}/named, as $FORGELINE_STORE says\n"
    assert run(capsys, "plan", "p.yaml", "--store", "other")[2] == "store: other\n"
    (tmp_path / "p.yaml").write_text(f"{text}store: mine\n")
    assert run(capsys, "plan", "p.yaml")[2] == "store: mine\n"
    monkeypatch.setenv("FORGELINE_STORE", "s3://key:secret@bucket")
    (tmp_path / "p.yaml").write_text(text)
    code, _, said = run(capsys, "plan", "p.yaml")
    assert code == 2 and "no credentials" in said and "secret" not in said

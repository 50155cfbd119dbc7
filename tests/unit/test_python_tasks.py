"""`configs/python_tasks.py`: what is asked of a function, and that the answers stand where they are said to stand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

MODULE = '''
class Box:
    def put(self, thing, größe="ä", *, where=(1,
                                             2)):
        """Put a thing into the box.  And so on.

        More."""
        if thing:
            return ["ö", thing]

    def both(self, a):
        if a:
            return 1 + a + 1000000000000000000000
        return 2 + a + 1000000000000000000000


def nothing_to_say(text):
    """Too short."""
    print(text, "and a line that makes this long enough to be asked about")
'''


@pytest.fixture
def found(load: Any, tmp_path: Path) -> dict[str, list[dict[str, Any]]]:
    (tmp_path / "kit/tests").mkdir(parents=True)
    (tmp_path / "kit/box.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "kit/tests/test_box.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "kit/bad.py").write_text("def f(:", encoding="utf-8")
    rows: dict[str, list[dict[str, Any]]] = load("../configs/python_tasks.py").rows(tmp_path)
    return rows


def test_answers_are_those_of_the_syntax_tree_and_stand_in_the_text(found: dict[str, list[dict[str, Any]]]) -> None:
    answers = {(row["text"].split("(")[0], row["question"]): row["answers"]["text"] for row in found["questions"]}
    assert answers == {
        ("def put", "What is the default of thing?"): [],
        ("def put", "What is the default of größe?"): ['"ä"'],
        ("def put", "What is the default of where?"): ["(1,\n" + " " * 41 + "2)"],
        ("def put", "What does it return?"): ['["ö", thing]'],
        ("def nothing_to_say", "What does it return?"): [],
    }, "no defaults: not asked for them; two returns: neither is the answer"
    for row in found["questions"]:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["text"][start:].startswith(text)
    assert {row["file"] for row in found["questions"]} == {"kit/box.py"}


def test_a_description_is_the_first_sentence_and_no_longer_in_the_function(
    found: dict[str, list[dict[str, Any]]],
) -> None:
    (pair,), (talk,) = found["search"], found["talks"]
    assert pair["text"] == "Put a thing into the box." and "Put a thing" not in pair["function"]
    assert pair["function"].startswith("def put(self") and pair["function"].endswith('return ["ö", thing]')
    assert [m["content"] for m in talk["messages"]] == ["What does kit.box.Box.put do?", "Put a thing into the box."]


def test_the_command_writes_the_same_bytes_again(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = load("../configs/python_tasks.py")
    (tmp_path / "box.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.setattr(tasks.sysconfig, "get_path", lambda name: str(tmp_path))
    written = []
    for _ in range(2):
        assert tasks.main(["--to", str(tmp_path / "made")]) == 0
        written.append({file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()})
    assert written[0] == written[1] and sorted(written[0]) == ["questions.jsonl", "search.jsonl", "talks.jsonl"]
    assert json.loads(written[0]["talks.jsonl"])["file"] == "box.py"
    assert "search.jsonl: 1 rows" in capsys.readouterr().out

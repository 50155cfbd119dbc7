"""Templates and patterns of other people: compiled when the file is checked, ended when they take too long."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from infra import time_limit
from infra.errors import ConfigError, StageError
from infra.time_limit import TimeLimit, TookTooLong
from tasks.data.reading.chat_template import chat_renderer, check_chat_template
from tasks.data.reading.rows import Columns, Rejected, Row, read_rows
from tasks.data.reading.sources import Source
from tasks.evaluation.slices import Slicing, _masks
from tasks.generation.text.post_process import PostProcess, Regex
from tasks.pipeline.load import load_pipeline

CATASTROPHE, WRONG = r"(a+)+$", "a" * 60 + "b"
ENDLESS = (
    "{{ messages[0].content }}{% if messages[0].content == 'bad' %}{% for i in range(99999) %}"
    "{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
)


def endless() -> None:
    while True:
        pass


def test_a_pattern_and_a_loop_are_ended_and_what_was_there_before_stays() -> None:
    handler, timer = signal.getsignal(signal.SIGALRM), signal.getitimer(signal.ITIMER_REAL)
    limit = TimeLimit("it", seconds=0.05)
    with pytest.raises(TookTooLong, match=r"it takes more than 0\.05 s"):
        limit(lambda: re.search(CATASTROPHE, WRONG))
    with pytest.raises(TookTooLong):
        limit(endless)
    assert limit(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        limit(lambda: 1 // 0)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert bool(signal.getitimer(signal.ITIMER_REAL)[0]) == bool(timer[0])


def test_in_another_thread() -> None:
    found: list[Any] = []

    def work() -> None:
        limit = TimeLimit("it", seconds=0.05)
        try:
            limit(endless)
        except TookTooLong as error:
            found.append(str(error))
        found.append(limit(lambda: 7))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == ["it takes more than 0.05 s for it", 7]


def test_too_many_that_take_too_long_end_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_limit, "MOST", 3)
    limit = TimeLimit("the template", seconds=0.01, where="chat_template")
    for _ in range(2):
        with pytest.raises(TookTooLong):
            limit(endless)
    with pytest.raises(StageError, match=r"chat_template: the template takes more than 0\.01 s for each of 3 texts"):
        limit(endless)


# --- chat templates ---------------------------------------------------------------------------------------------------


def conversations(folder: Path, template: str, contents: list[str]) -> list[Row | Rejected]:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps({"m": [{"role": "user", "content": text}]}) + "\n" for text in contents))
    given = {"files": str(file), "format": "jsonl", "messages_column": "m", "chat_template": template}
    return list(read_rows(file, "a.jsonl", Source.model_validate(given), Columns()))


def test_a_template_without_end_sets_its_rows_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.reading.chat_template.SECONDS", 0.1)
    good, bad, more = conversations(tmp_path, ENDLESS, ["good", "bad", "more"])
    assert isinstance(good, Row) and good.text == "good"
    assert isinstance(bad, Rejected) and bad.line == 2
    assert bad.reason == "the chat template takes more than 0.1 s for it"
    assert isinstance(more, Row) and more.text == "more"


@pytest.mark.parametrize(
    ("expression", "why"),
    [
        ("7 ** 99999999", "power that is too large"),
        ("messages[0].content * 1000000000", "repetition that is too long"),
        ("'%1000000000d' % 1", "width that is too large"),
        ("'%*d' % (1000000000, 1)", "width that is too large"),
        ("'x'.center(1000000000)", "number above 10,000"),
        ("'x' | center(1000000000)", "number above 10,000"),
        ("messages | tojson(indent=1000000000)", "number above 10,000"),
        ("'{:>1000000000}'.format(1)", "refuses"),
        ("1 // 0", "integer division or modulo by zero"),
        ("messages[0].content + 1", "can only concatenate str"),
        ("range(1000000)", "Range too big"),
        ("messages.__class__.__mro__", "refuses"),
        ("raise_exception('no such role')", "no such role"),
        ("messages[0].nothing.more", "has no attribute 'nothing'"),
    ],
)
def test_whatever_a_template_raises_is_about_its_row(tmp_path: Path, expression: str, why: str) -> None:
    template = "{% if messages[0].content == 'bad' %}{{ " + expression + " }}{% endif %}ok"
    bad, good = conversations(tmp_path, template, ["bad", "good"])
    assert isinstance(bad, Rejected) and why in bad.reason and bad.reason.startswith("the chat template refuses it")
    assert isinstance(good, Row) and good.text == "ok"


def test_a_template_that_writes_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.reading.chat_template.LONGEST", 1000)
    (bad,) = conversations(tmp_path, "{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}", ["x"])
    assert isinstance(bad, Rejected) and "it writes more than" in bad.reason


def test_what_templates_of_the_hub_use_is_there() -> None:
    """As transformers renders them."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = (
        "{%- for message in messages -%}{% if message.role == 'system' %}{% continue %}{% endif %}\n"
        "{{ '<' + message.role + '>' }}{% generation %}{{ message.content | trim }}{% endgeneration %}"
        "{{ message | tojson }}{% endfor %}{% if tools %}tools{% endif %}"
        "{% set ns = namespace(n=0) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}{{ messages[-1].role == 'user' }}"
    )
    check_chat_template(template)
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": " <b> é "}]
    (expected,), _ = render_jinja_template([messages], chat_template=template)
    assert chat_renderer(template)(messages) == expected


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for m in messages %}\n{{ m.content }", "is no Jinja template: line 2: "),
        ("{% for m in messages %}\n", "is no Jinja template: line 1: "),
        ("{{ messages | nothing }}", "No filter named 'nothing'"),
        ("{% for m in message %}{{ m.content }}{% endfor %}", "never reads `messages`"),
        ("{{ messages }}" + "(" * 3000, None),
        ("{{ " + "(" * 3000 + "messages" + ")" * 3000 + " }}", "`chat_template`"),
    ],
    ids=["brace", "end", "filter", "misspelt", "text", "deep"],
)
def test_validate_compiles_chat_templates(tmp_path: Path, template: str, said: str | None) -> None:
    file = tmp_path / "p.yaml"
    source = {"files": "a.jsonl", "format": "jsonl", "messages_column": "m", "chat_template": template}
    file.write_text(f"name: p\nstages:\n  d:\n    dataset: {{sources: [{json.dumps(source)}]}}\n")
    if said is None:
        load_pipeline(file)
        return
    with pytest.raises(ConfigError) as error:
        load_pipeline(file)
    assert str(error.value).startswith(f"{file}:4: stages.d.dataset.sources[0]: `chat_template`")
    assert said in str(error.value)


def test_the_template_of_an_objective_is_compiled_too() -> None:
    from tasks.objectives.text.causal_lm import CausalLM

    with pytest.raises(ValueError, match=r"`chat_template` is no Jinja template: line 1"):
        CausalLM.model_validate({"messages": "m", "chat_template": "{{ messages"})


def test_a_template_in_training_has_its_limit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.objectives.text.inputs.chat import rendered

    monkeypatch.setattr("tasks.objectives.text.inputs.chat.SECONDS", 0.05)
    with pytest.raises(StageError, match=r"refuses its first 1 messages: the chat template takes more than 0\.05 s"):
        rendered([{"role": "user", "content": "x"}], lambda *given, **more: endless(), None, prompt=False)  # type: ignore[func-returns-value, return-value]


# --- regular expressions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(a", "at position 0"), ("a**", "at position 2"), ("(" * 3000 + ")" * 3000, "no regular"), ("a{9999999999}", "")],
)
def test_patterns_that_cannot_be_compiled(pattern: str, said: str) -> None:
    for model, field in ((Regex, "regex"), (Slicing, "pattern")):
        with pytest.raises(ValueError, match="no regular expression") as error:
            model.model_validate({"by": "x", field: pattern} if model is Slicing else {field: pattern})
        assert said in str(error.value)


def test_an_output_on_which_a_pattern_never_ends_has_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.regular_expression.SECONDS", 0.05)
    process = PostProcess([Regex(regex=r"^((?:a+)+)$"), "strip"])
    assert [process(text) for text in ("aaa", WRONG, "b", WRONG)] == ["aaa", "", "", ""]
    assert process.late == {WRONG}


def test_a_slice_whose_pattern_never_ends_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra.regular_expression.SECONDS", 0.05)
    slicing = Slicing(by="text", pattern=CATASTROPHE)
    assert set(_masks("long", slicing, ["aa", "b"])) == {"aa", "(none)"}
    with pytest.raises(StageError, match=r"(?s)slices\.long\.pattern: column 'text'.*\(a\+\)\+\$ takes more than"):
        _masks("long", slicing, ["aa", WRONG])

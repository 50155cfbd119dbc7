"""`template:`: what it may hold, and that nothing of Python's format language is evaluated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import ConfigError
from tasks.data.reading.column_template import template_parts
from tasks.data.reading.rows import Columns, Rejected, Row, read_rows
from tasks.data.reading.sources import Source
from tasks.pipeline.load import load_pipeline

PIPELINE = """\
name: template
stages:
  one:
    dataset:
      sources:
        - {{files: "rows.jsonl", format: jsonl, template: {template}}}
"""


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{question:{answer.__class__.__mro__}}", "a single { at character 1"),
        ("{question:>40000000}", "{question:>40000000} at character 1 is one with a width or a format"),
        ("Q: {question:d}", "{question:d} at character 4 is one with a width or a format"),
        ("{question!r}", "with a conversion"),
        ("{question.__class__}", "that looks into a value"),
        ("{question[0]}", "that looks into a value"),
        ("{0}", "that is no column's name"),
        ("{}", "that is no column's name"),
        ("} {question}", "a single } at character 1; write }} for }"),
        ("{question", "a single { at character 1; write {{ for {"),
        ("{{question}}", "this one names none"),
    ],
)
def test_validate_refuses_all_but_plain_columns(tmp_path: Path, template: str, said: str) -> None:
    file = tmp_path / "p.yaml"
    file.write_text(PIPELINE.format(template=json.dumps(template)))
    with pytest.raises(ConfigError) as error:
        load_pipeline(file)
    assert str(error.value).startswith(f"{file}:6: stages.one.dataset.sources[0]: `template`")
    assert said in str(error.value)


def test_a_text_of_columns_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.data.reading.templates.LONGEST_ROW", 1000)
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"q": "x" * 300}) + "\n" + json.dumps({"q": "{a} %s {"}) + "\n")
    source = Source.model_validate({"files": str(file), "format": "jsonl", "template": "{q}{{{q}}}" * 2})
    long, short = read_rows(file, "a.jsonl", source, Columns())
    assert isinstance(long, Rejected) and long.reason.startswith("longer than")
    assert isinstance(short, Row) and short.text == "{a} %s {{{a} %s {}" * 2, "what a column holds is never read"


NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,6}", fullmatch=True)


@given(st.lists(st.tuples(st.text(), NAMES), min_size=1))
def test_texts_and_columns_come_back(pieces: list[tuple[str, str]]) -> None:
    template = "".join(text.replace("{", "{{").replace("}", "}}") + f"{{{name}}}" for text, name in pieces)
    values = {name: f"<{name}>" for _, name in pieces}
    filled = "".join(text if column is None else values[column] for text, column in template_parts(template))
    assert filled == template.format_map(values) == "".join(text + values[name] for text, name in pieces)


@given(st.text(alphabet="{}:!.[]a0 "))
def test_any_text_is_a_template_or_refused(template: str) -> None:
    try:
        parts = template_parts(template)
    except ValueError as error:
        assert str(error).startswith("`template`")
    else:
        assert [c for _, c in parts if c] == [c for _, c in parts if c is not None and c.isidentifier()]
        Source.model_validate({"files": "x", "format": "csv", "template": template})

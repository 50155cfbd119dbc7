"""Labels, sources, licences and errors are other people's text: on every page and on the terminal they stay text."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from flows import cli
from flows.live import LiveView
from infra import refs
from infra.open_store import open_store
from tasks.models.card import ModelCard, write_card
from tasks.release.promotion.model_page import model_page
from tasks.run.prefect_task import verdict_page
from tasks.stage import InputArtifact

LABEL = "a|b\n\n## Independently audited\n\n![beacon](http://127.0.0.1:9/leak.png)\n<script>alert(1)</script>"
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")
STEERS = "\x1b[2K\x1b]0;all is well\x07\u202e"


def assert_nothing_of_it_is_markup(page: str, headings: list[str]) -> None:
    tokens = MARKDOWN.parse(page)
    inside = [child for token in tokens for child in token.children or []]
    assert not {token.type for token in [*tokens, *inside]} & {"html_block", "html_inline", "image", "link_open"}
    assert [tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open"] == headings


def verdict() -> dict[str, Any]:
    requirement = {
        "metric": f"f1[{LABEL}]", "rule": "min", "confidence": None, "candidate": 0.9, "against": None, "bound": 0.9,
        "limit": 0.5, "passed": True, "sentence": f"f1[{LABEL}] of int8 is 0.9.",
    }  # fmt: skip
    return {
        "passed": True, "candidate": {"name": "int8", "digest": "a" * 64}, "against": None, "resamples": 100,
        "data": {"n": 10, "stage": "texts", "split": "test"}, "requirements": [requirement],
    }  # fmt: skip


def test_the_card_of_a_model_holds_the_sections_it_is_made_of_and_no_others(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "records").mkdir()
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "dataset.json").write_text("{}")
    sources = [{"source": f"texts {LABEL}", "licence": f'MIT"\n---\n# free: \U0001f600 {LABEL}\x85'}]
    (tmp_path / "records" / "card.json").write_text(json.dumps({"sources": sources}))
    data = store.commit(
        kind="dataset", type="dataset", key="d" * 64, attempt="a", payload_dir=tmp_path / "rows",
        records_dir=tmp_path / "records", identity={},
    )  # fmt: skip
    model = tmp_path / "model"
    model.mkdir()
    write_card(model, ModelCard({"name": "text_classification"}, 32, [LABEL, "dog"]))
    inputs = {"data": [{"kind": "dataset", "key": data.key}]}
    made = store.commit(
        kind="finetune", type="model", key="e" * 64, attempt="a", payload_dir=model, identity={}, inputs=inputs
    )
    page = model_page(store, "kinds/production", InputArtifact("clf", model, made), verdict(), made)
    assert page.startswith("---\n")
    head, body = page.removeprefix("---\n").split("\n---\n", 1)
    said = yaml.safe_load(head)
    assert set(said) == {"library_name", "tags", "license", "license_name"}
    assert said["license_name"] == " ".join(sources[0]["licence"].replace("\x85", "\ufffd").split())
    sections = ["kinds/production", "Why it ships", "What it was made of", "How to load it"]
    assert_nothing_of_it_is_markup(body, sections)
    assert "Independently audited" in body, "the label is still there to be read"


def test_a_verdict_in_the_prefect_ui_is_a_table_of_text() -> None:
    page = verdict_page(verdict())
    assert_nothing_of_it_is_markup(page, ["Passed"])
    assert sum(token.type == "td_open" for token in MARKDOWN.parse(page)) == 6


def test_names_that_are_markup_for_rich_or_steer_a_terminal_are_shown_as_they_are() -> None:
    stream = io.StringIO()
    with LiveView([("base", "dataset")], stream=stream) as view:
        view.update("base", state="failed", reason=f"no column [red]x[/red] {STEERS}")
        view.warn("base", [f"label [bold]{STEERS}"])
    assert "no column [red]x[/red]" in stream.getvalue() and "label [bold]" in stream.getvalue()
    assert not set(stream.getvalue()) & set(STEERS) - set("[2K]0;all is well")


def test_the_table_of_a_terminal_passes_no_escape_sequence_of_others() -> None:
    primary, secondary = os.openpty()
    try:
        with open(secondary, "w", closefd=False) as stream, LiveView([("base", "dataset")], stream=stream) as view:
            view.update("base", state="failed", reason=f"see {STEERS}")
        written = os.read(primary, 1 << 16).decode()
    finally:
        os.close(primary)
        os.close(secondary)
    assert "\x1b[2K\x1b]0;" not in written and "\u202e" not in written


def test_what_commands_print_is_printable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = open_store(str(tmp_path / "store"))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "f").write_text("x")
    made = store.commit(
        kind="dataset", type="dataset", key="d" * 64, attempt="a", payload_dir=tmp_path / "made",
        identity={"params": {"licence": f"{STEERS} caf\u00e9"}}, warnings=[STEERS],
    )  # fmt: skip
    refs.advance(store, "p/rows/latest", made.ref)
    assert cli.main(["show", "p/rows/latest", "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    assert "licence" in said and "warning" in said
    assert not set(said) & set("\x1b\x07\u202e")
    assert cli.main(["show", f"nothing{STEERS}", "--store", str(tmp_path / "store")]) == 2
    assert not set(capsys.readouterr().err) & set("\x1b\x07\u202e")

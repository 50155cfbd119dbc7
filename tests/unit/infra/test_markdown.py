"""Text of others in Markdown is read as text: checked with a CommonMark parser that knows tables."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from infra.markdown import code, plain_text
from infra.terminal import printable

SECTION = "a|b\n\n## Independently audited\n\n![beacon](http://127.0.0.1:9/leak.png)\n<script>alert(1)</script>"
PIECES = st.sampled_from([*"\\`*_[]()<>|~$!#+-=.&:;/@ 1\n\r\t\0\x1b", "\u2028", "\u202e", "a", "b", "é", "www.", "http://",
                          "<b>", "&lt;", "&#96;", "](x)", "|-|", "```", "---"])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=12).map("".join)
MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def flat(tokens: list[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *flat(token.children or []))]


def shown(text: str) -> str:
    """What a reader sees of the value: one line, what steers a terminal marked."""
    return " ".join(printable(text).split())


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example(SECTION)
def test_in_a_list_it_is_one_text(text: str) -> None:
    tokens = flat(MARKDOWN.parse(f"- labels: {plain_text(text)}, end\n"))
    assert {token.type for token in tokens} <= {
        "bullet_list_open", "list_item_open", "paragraph_open", "inline", "text", "text_special", "paragraph_close",
        "list_item_close", "bullet_list_close",
    }  # fmt: skip
    read = "".join(token.content for token in tokens if token.type in ("text", "text_special"))
    assert read == f"labels: {shown(text)}, end"


@settings(max_examples=300, deadline=None)
@given(TEXTS.filter(lambda text: bool(text.split())))
@example("# heading")
@example("1. item")
def test_at_the_beginning_of_a_line_it_is_one_text(text: str) -> None:
    tokens = flat(MARKDOWN.parse(f"{plain_text(text)}\n"))
    assert {token.type for token in tokens} <= {"paragraph_open", "inline", "text", "text_special", "paragraph_close"}
    assert "".join(token.content for token in tokens if token.type in ("text", "text_special")) == shown(text)


@settings(max_examples=300, deadline=None)
@given(TEXTS)
@example(SECTION)
def test_in_a_table_it_is_one_cell(text: str) -> None:
    tokens = flat(MARKDOWN.parse(f"| a | b |\n|-|-|\n| {plain_text(text)} | 1 |\n"))
    assert sum(token.type == "td_open" for token in tokens) == 2
    assert not {token.type for token in tokens} & {"html_inline", "html_block", "link_open", "image", "code_inline"}
    cell = next(tokens[i + 1] for i, token in enumerate(tokens) if token.type == "td_open")
    assert "".join(token.content for token in cell.children or []) == shown(text)


@settings(max_examples=200, deadline=None)
@given(TEXTS)
@example("`` ` ``")
def test_in_a_code_span_it_is_one_code(text: str) -> None:
    tokens = flat(MARKDOWN.parse(f"in {code(text)} end\n"))
    assert [token.type for token in tokens] == [
        "paragraph_open", "inline", "text", "code_inline", "text", "paragraph_close",
    ]  # fmt: skip
    assert tokens[3].content.strip() == shown(text)


@pytest.mark.parametrize("text", ["https://evil.example/x", "www.evil.example"])
def test_readers_make_no_link_of_an_address(text: str) -> None:
    assert "s://" not in plain_text(text) and "www." not in plain_text(text)


@pytest.mark.parametrize("text", ["f1_macro", "B-PER", "0.93 is at least 0.9.", "R&D", "up to 128", "a.jsonl", "-0.1"])
def test_usual_names_and_sentences_stay_as_they_are(text: str) -> None:
    assert plain_text(text) == text

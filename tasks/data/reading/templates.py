"""The text of a row: one column, columns put into a template, or a chat."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.errors import StageError
from infra.time_limit import TookTooLong
from tasks.data.plain_values import in_text
from tasks.data.reading.chat_template import chat_renderer
from tasks.data.reading.column_template import template_parts
from tasks.data.reading.sources import Source
from tasks.data.reading.streams import LONGEST_ROW, too_long

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
)
ROLES = ("system", "user", "assistant", "tool")


class Text(str):
    """A text, as a type other than a plain string that says why there is none."""

    __slots__ = ()


class TextMaker:
    """Makes the text of a record, or says what is wrong with it. `columns`: those it needs."""

    def __init__(self, columns: list[str], make: Callable[[dict[str, Any]], Text | str]) -> None:
        self.columns, self._make = columns, make

    def __call__(self, record: dict[str, Any]) -> Text | str:
        return self._make(record)


def text_maker(source: Source) -> TextMaker:
    """How the text of a source's records is made."""
    if source.messages_column is not None:
        return _chat(source.messages_column, source.chat_template or CHATML)
    if source.template is not None:
        return _filled(source.template)
    if source.text_column is None:
        return TextMaker([], lambda record: Text(""))
    column = "text" if source.format == "lines" else source.text_column

    def make(record: dict[str, Any]) -> Text | str:
        text = record.get(column)
        return Text(text) if isinstance(text, str) else _no_text(column, record)

    return TextMaker([column], make)


def _no_text(column: str, record: dict[str, Any]) -> str:
    return f"column {column!r} holds no text (columns: {', '.join(sorted(map(str, record))[:8])})"


def _filled(template: str) -> TextMaker:
    parts = template_parts(template)
    columns = list(dict.fromkeys(column for _, column in parts if column is not None))

    def make(record: dict[str, Any]) -> Text | str:
        rendered: dict[str, str] = {}
        for column in columns:
            try:
                text = in_text(record.get(column))
            except ValueError as error:
                return f"column {column!r} holds {error}"
            if text is None:
                return _no_text(column, record)
            rendered[column] = text
        texts = [text if column is None else rendered[column] for text, column in parts]
        return Text("".join(texts)) if sum(map(len, texts)) <= LONGEST_ROW else too_long()

    return TextMaker(columns, make)


def _chat(column: str, template: str) -> TextMaker:
    render = chat_renderer(template)

    def make(record: dict[str, Any]) -> Text | str:
        messages = record.get(column)
        if not isinstance(messages, list) or not messages:
            return f"column {column!r} holds no list of messages"
        for i, message in enumerate(messages):
            if not isinstance(message, dict) or message.get("role") not in ROLES:
                return f"message {i + 1} has none of the roles {', '.join(ROLES)}"
            if not isinstance(message.get("content"), str):
                return f"message {i + 1} has no content"
        try:
            return Text(render(messages))
        except StageError:
            raise
        except TookTooLong as error:
            return str(error)
        except Exception as error:
            # A template is a program of somebody else: whatever it raises is about this row.
            return f"the chat template refuses it: {error or type(error).__name__}"

    return TextMaker([column], make)

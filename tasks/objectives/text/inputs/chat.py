"""Chat messages as training examples: what a chat template makes of them, and which tokens are the assistant's.

An answer begins where the template's prompt for it ends (`add_generation_prompt`), and ends with its end-of-turn token:
these are the tokens a model has to say itself when it is asked. They are found by rendering the beginnings of a
conversation and by the tokens' offsets in the text, so that any template serves that only ever adds to what it wrote.
Each answer begins with a token of its own (`tasks/objectives/text/inputs/chat_tokens.py`). Where a template ends the
last answer with no special token, the end-of-text token ends it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from infra.time_limit import TimeLimit
from tasks.data.dataset.split import read_split
from tasks.data.reading.chat_template import SECONDS
from tasks.losses.cross_entropy import IGNORED
from tasks.objectives.shared.padding import CHARACTERS_PER_TOKEN
from tasks.objectives.text.inputs.chat_tokens import Tokens, conversation_tokens
from tasks.objectives.text.inputs.texts import bytes_of_tokens, end_of_text
from tasks.processors.tokenizer import require_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

T = TypeVar("T")
Span = tuple[int, int]
ANSWERS = "assistant"


def chat_features(
    data: InputArtifact,
    split: str,
    column: str,
    template: str | None,
    tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
    *,
    close: bool,
) -> list[dict[str, Any]]:
    """One example a conversation, cut to `max_length` tokens.

    close: end a conversation that no special token ends, and that was not cut, with the end-of-text token. `input_ids`
    int32 [T]; `labels` int64 [T], -100 wherever the assistant does not speak; `bytes`, how many the tokens with a label
    stand for. Raises StageError on messages that are none, on a template that is missing or refuses them,
    and where nothing is left to learn from in the whole split.
    """
    tokenizer = with_template(tokenizer, template)
    render: Callable[..., str] = tokenizer.apply_chat_template  # type: ignore[assignment]
    ends = special_tokens(tokenizer)
    conversations = [
        found
        for _, found in of_conversations(
            data, split, column, lambda messages: answer_spans(messages, render, template, ends)
        )
    ]
    features: list[dict[str, Any]] = []
    texts = [text[: max_length * CHARACTERS_PER_TOKEN] for text, _ in conversations]
    found = conversation_tokens(texts, [[start for start, _ in spans] for _, spans in conversations], tokenizer)
    for text, (whole, spans), tokens in zip(texts, conversations, found, strict=True):
        row = np.asarray(tokens.ids[:max_length], np.int32)
        counted = _inside(tokens, spans)[:max_length]
        counted[:1] = False  # nothing before it foretells it
        size = int(bytes_of_tokens(text, tokens.offsets[:max_length])[counted].sum())
        if close and len(text) == len(whole) and len(tokens.ids) < max_length and _breaks_off(whole, spans, ends):
            row, counted = np.append(row, np.int32(end_of_text(tokenizer))), np.append(counted, True)
        labels = np.where(counted, row.astype(np.int64), IGNORED)
        features.append({"input_ids": row, "labels": labels, "bytes": size})
    if not any((feature["labels"] != IGNORED).any() for feature in features):
        raise StageError(
            f"split {split!r} has no token of an answer within {max_length} tokens: all labels would be ignored",
            where=data.stage,
            hint=f"Raise max_length, or see that column {column!r} has messages of the role {ANSWERS!r}.",
        )
    return features


def _breaks_off(text: str, spans: Sequence[Span], ends: Sequence[str]) -> bool:
    """Whether a conversation ends with an answer that no special token closes: its model would never learn to stop."""
    return bool(spans) and spans[-1][1] == len(text) and not _closed(text, ends)


def _closed(text: str, ends: Sequence[str]) -> bool:
    """Whether a special token ends the text, blanks aside."""
    return any(text.rstrip().endswith(end) for end in ends if end)


def with_template(tokenizer: PreTrainedTokenizerFast | None, template: str | None) -> PreTrainedTokenizerFast:
    """The tokenizer. Raises StageError if there is none, or neither it nor the objective has a chat template."""
    tokenizer = require_tokenizer(tokenizer)
    if template is None and not tokenizer.chat_template:
        raise StageError(
            "the model's tokenizer has no chat template",
            where="objective.chat_template",
            hint="Set `chat_template` to a Jinja template over `messages`; it ships with the model. ChatML is: "
            "{% for m in messages %}<|im_start|>{{ m.role }}\\n{{ m.content }}<|im_end|>\\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\\n{% endif %}",
        )
    return tokenizer


def special_tokens(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """Tokens that may end a turn."""
    return sorted({*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()})


def of_conversations(
    data: InputArtifact, split: str, column: str, make: Callable[[list[dict[str, str]]], T]
) -> list[tuple[str, T]]:
    """(name, what is made of its messages) of each example. A StageError on the way names the example."""
    table = read_split(data, split, columns=("id", column))
    found = []
    for name, cell in zip(table["id"], table[column], strict=True):
        try:
            found.append((str(name), make(_messages(cell))))
        except StageError as error:
            what = f"column {column!r} of example {name!r}: {error.what}"
            raise StageError(what, where=data.stage, hint=error.hint) from error
    return found


def answer_spans(
    messages: Sequence[dict[str, str]], render: Callable[..., str], template: str | None, ends: Sequence[str]
) -> tuple[str, list[Span]]:
    """(the conversation as text, where in it each answer stands, end-of-turn token included).

    render: `apply_chat_template` of a tokenizer. ends: its special tokens; what a template writes after one that ends
    an answer (ChatML's line break) is not the assistant's to say.
    """

    def written(count: int, *, prompt: bool = False) -> str:
        return rendered(messages[:count], render, template, prompt=prompt)

    whole, spans = written(len(messages)), []
    if not whole:
        raise StageError("the chat template writes nothing", hint="Give another `chat_template`.")
    for i, message in enumerate(messages):
        if message["role"] != ANSWERS:
            continue
        until = whole if i + 1 == len(messages) else written(i + 1)
        # A conversation that opens with an answer has no prompt for it.
        before = written(i, prompt=True) if i else whole[: max(0, whole.find(message["content"]))]
        if not (whole.startswith(until) and until.startswith(before)):
            raise StageError(
                f"the chat template writes the beginning of a conversation in another way once message {i + 1} follows",
                hint="The positions of its answers are not known then: use a template that only adds to what it wrote.",
            )
        answer = until[len(before) :]
        if _closed(answer, ends):
            answer = answer.rstrip()
        spans.append((len(before), len(before) + len(answer)))
    return whole, spans


def rendered(
    messages: Sequence[dict[str, str]], render: Callable[..., str], template: str | None, *, prompt: bool
) -> str:
    """What the template writes for these messages; prompt: and what an answer begins behind."""
    limit = TimeLimit("the chat template", seconds=SECONDS)
    try:
        return limit(lambda: render(messages, chat_template=template, tokenize=False, add_generation_prompt=prompt))
    except Exception as error:
        # Whatever a template's expressions do with a message can go wrong here.
        raise StageError(
            f"the chat template refuses its first {len(messages)} messages: {error}",
            hint="Change the messages, or give another `chat_template`.",
        ) from error


def _messages(cell: Any) -> list[dict[str, str]]:
    hint = 'Declare the column as `json`; each row is like [{"role": "user", "content": "..."}, ...].'
    try:
        found = json.loads(cell) if isinstance(cell, str) else cell
    except ValueError:
        found = None
    if not isinstance(found, list) or not found:
        raise StageError("it holds no list of messages", hint=hint)
    for i, message in enumerate(found, 1):
        texts = [message.get(key) for key in ("role", "content")] if isinstance(message, dict) else []
        if not texts or not all(isinstance(text, str) for text in texts):
            raise StageError(f"message {i} has no text as `role` and `content`", hint=hint)
    return found


def _inside(tokens: Tokens, spans: Sequence[Span]) -> npt.NDArray[np.bool_]:
    """Which tokens stand in a span, bool [T]: from its first on, those that begin before its end.

    Byte-level tokenizers leave a leading space out of a token's offsets, so that one which is nothing else is empty at
    its end: that end counts.
    """
    begin, end = np.asarray(tokens.offsets, np.int64).reshape(-1, 2).T
    found = np.zeros(len(tokens.ids), np.bool_)
    for start, stop in spans:
        first = tokens.first.get(start, len(found))  # the text was cut before this answer
        found[first:] |= np.where(begin < end, begin < stop, end <= stop)[first:]
    return found

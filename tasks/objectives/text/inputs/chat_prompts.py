"""Conversations up to their last answer: what a model is asked, and what it should have said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infra.errors import StageError
from tasks.objectives.shared.text_prompt import Prompt
from tasks.objectives.text.inputs.chat import ANSWERS, of_conversations, rendered, special_tokens, with_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tasks.stage import InputArtifact

HINT = "Leave such rows out of the source."


class Question(NamedTuple):
    """`text`: all that stands before the answer, rendered; `asked`: the message before it; `end`: closes the turn."""

    text: str
    asked: str
    answer: str
    end: str


def chat_prompts(
    data: InputArtifact,
    split: str,
    column: str,
    template: str | None,
    tokenizer: PreTrainedTokenizerFast | None,
    max_length: int,
) -> list[Prompt]:
    """One a conversation; of a longer one the last `max_length` tokens. What follows the last answer is left out.

    The special token that ends a turn in the template ends an output. Raises StageError on a conversation that has no
    answer, or begins with its only one.
    """
    known = with_template(tokenizer, template)
    render: Callable[..., str] = known.apply_chat_template  # type: ignore[assignment]
    ends = special_tokens(known)
    found = of_conversations(data, split, column, lambda messages: _question(messages, render, template, ends))
    texts = [question.text for _, question in found]
    rows = known(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    prompts = []
    for (name, question), ids in zip(found, rows, strict=True):
        closing = (int(known.get_vocab()[question.end]),) if question.end else ()
        kept = np.asarray(ids[-max_length:], np.int64)
        prompts.append(Prompt(name, question.asked, question.answer, kept, len(ids), closing))
    return prompts


def with_last_answer(conversation: str, text: str) -> str:
    """A conversation, as JSON, up to its last answer, which is now another text. It has been asked about before."""
    messages = json.loads(conversation)
    asked = messages[: _last_answer(messages)]
    return json.dumps([*asked, {"role": ANSWERS, "content": text}], ensure_ascii=False)


def _last_answer(messages: Sequence[dict[str, str]]) -> int:
    return max((i for i, message in enumerate(messages) if message["role"] == ANSWERS), default=-1)


def _question(
    messages: Sequence[dict[str, str]], render: Callable[..., str], template: str | None, ends: Sequence[str]
) -> Question:
    last = _last_answer(messages)
    if last < 0:
        raise StageError(f"no message is of the role {ANSWERS!r}: there is no reference", hint=HINT)
    if last == 0:
        raise StageError("it begins with its only answer: nothing was asked", hint=HINT)
    text = rendered(messages[:last], render, template, prompt=True)
    whole = rendered(messages[: last + 1], render, template, prompt=False)
    said = whole[len(text) :].rstrip() if whole.startswith(text) else ""
    end = max((end for end in ends if end and said.endswith(end)), key=len, default="")
    return Question(text, messages[last - 1]["content"], messages[last]["content"], end)

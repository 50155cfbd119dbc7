"""What is done to rows one by one, in a fixed order: repair, length, language, quality, personal data, label.

A step gives the row back, perhaps changed, or says why it goes. Each keeps an account of rows and characters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from tasks.data.reading.rows import Row
from tasks.data.steps.answer_places import moved
from tasks.data.steps.cleaning import Clean, length_fault, repair
from tasks.data.steps.labels import mapped
from tasks.data.steps.language import Language, detector, language_fault
from tasks.data.steps.pii import Pii, masker
from tasks.data.steps.quality import Quality, c4, gopher_fault, repetition_fault
from tasks.stage import StageParams


class RowSteps(StageParams):
    """The steps that look at one row alone, part of a dataset's params."""

    clean: Clean = Field(default_factory=lambda: Clean(), description="Normalisation and length limits.")
    language: Language | None = Field(None, description="Languages that stay. None: all.")
    quality: Quality = Field(default_factory=lambda: Quality(), description="Published rules that recognise prose.")
    pii: Pii | None = Field(None, description="Personal data that are masked. None: none.")


@dataclass
class Account:
    """Of one step: rows and characters in and out, why rows went, how many were changed and how."""

    step: str
    rows_in: int = 0
    rows_out: int = 0
    characters_in: int = 0
    characters_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "dropped": dict(self.dropped), "changed": dict(self.changed)}


@dataclass(frozen=True)
class Bad:
    """A row that is set aside: its label is not what the pipeline says labels are."""

    reason: str


Change = Callable[[Row, Account], "Row | str | Bad"]
"""The row as it goes on, or why it goes."""


def row_steps(
    settings: RowSteps, labels: Labels | None = None, *, has_text: bool = True
) -> list[tuple[Account, Change]]:
    """The steps asked for, in order, each with a fresh account; without a text there is nothing to do but label."""
    found: list[tuple[str, Change]] = []
    if labels is not None:
        found.append(("label", labels.change))
    if not has_text:
        return [(Account(name), change) for name, change in found]
    found.append(("clean", _clean(settings.clean)))
    if settings.language is not None:
        found.append(("language", _language(settings.language)))
    quality = settings.quality
    if quality.c4:
        found.append(("c4", _c4))
    for asked, name, fault in (
        (quality.gopher, "gopher", gopher_fault),
        (quality.repetition, "repetition", repetition_fault),
    ):
        if asked:
            found.append((name, _filter(fault)))
    if settings.pii is not None:
        found.append(("pii", _pii(settings.pii)))
    return [(Account(name), change) for name, change in found]


def walk_through(row: Row, steps: Iterable[tuple[Account, Change]]) -> Row | Bad | None:
    """The row after all steps; None if one dropped it."""
    for account, change in steps:
        account.rows_in += 1
        account.characters_in += len(row.text)
        after = change(row, account)
        if isinstance(after, Bad):
            account.dropped["set aside"] += 1
            return after
        if isinstance(after, str):
            account.dropped[after] += 1
            return None
        account.rows_out += 1
        account.characters_out += len(after.text)
        row = after
    return row


class Labels:
    """The step that gives a row its label; `met` counts those there are, kept or not."""

    def __init__(self, known: dict[str, str] | None, keep: list[str] | None) -> None:
        self.known, self.keep = known, keep
        self.met: Counter[str] = Counter()

    def change(self, row: Row, account: Account) -> Row | str | Bad:
        label, wrong = row.label, ""
        if label is None:
            return "no label"
        if self.known is not None:
            label, wrong = mapped(label, self.known)
        if label is None:
            return Bad(wrong)
        self.met[label] += 1
        if self.keep is not None and label not in self.keep:
            return "label not kept"
        return row if label == row.label else replace(row, label=label)


def _clean(settings: Clean) -> Change:
    repaired = repair(settings.unicode)

    def change(row: Row, account: Account) -> Row | str:
        text = repaired(row.text)
        fault = length_fault(text, settings)
        if fault is not None:
            return fault
        if text != row.text and row.values:
            row = replace(row, values=moved(row.values, row.text, text, repaired))
        return _with_text(row, text, account, "repaired")

    return change


def _with_text(row: Row, text: str, account: Account, how: str) -> Row:
    """The row with another text, if it is another, and that on the account."""
    if text == row.text:
        return row
    account.changed[how] += 1
    return replace(row, text=text)


def _language(settings: Language) -> Change:
    detect = detector()

    def change(row: Row, account: Account) -> Row | str:
        return language_fault(detect(row.text), settings) or row

    return change


def _filter(fault: Callable[[str], str | None]) -> Change:
    return lambda row, account: fault(row.text) or row


def _c4(row: Row, account: Account) -> Row | str:
    text, fault = c4(row.text)
    if fault is not None:
        return fault
    return _with_text(row, text, account, "lines removed")


def _pii(settings: Pii) -> Change:
    mask = masker(settings.mask)

    def change(row: Row, account: Account) -> Row | str:
        text, counts = mask(row.text)
        account.changed.update(counts)
        return replace(row, text=text) if counts else row

    return change

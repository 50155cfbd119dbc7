"""Which rows of all shards make up the dataset, and in which split: decided from their sketches, texts unread.

The order in which rows are compared is fixed by splits, shards' names and places in them, so the result is a function
of the shards there are: not of when each arrived, nor of who prepared it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from infra.errors import StageError
from tasks.data.selection.dedup import (
    Dedup,
    Mask,
    NearDuplicates,
    first_of_equal,
    first_of_near,
    number_of_bands,
    repeated,
)
from tasks.data.selection.known import KnownRows, PreparedShard, Rows
from tasks.data.selection.splitting import SPLITS, TEST, TRAIN, Split, assign, assign_stratified
from tasks.data.steps.labels import Label, capped, check_classes, check_known, spelling_warnings
from tasks.data.steps.steps import Account


@dataclass(frozen=True)
class Rules:
    """What of a dataset's params decides over rows together."""

    split: Split
    dedup: Dedup
    label: Label | None = None
    max_overlap: float | None = None
    """Share of a training row's runs of words that evaluation sets may have; None: not asked."""


@dataclass
class Selection:
    """For each shard and split the rows that are in, in order, repeated where they count more than once."""

    rows: list[dict[str, Rows]]
    steps: list[dict[str, Any]]
    labels: list[str] | None
    table: dict[str, dict[str, int]] | None
    characters: dict[str, npt.NDArray[np.int32]]
    """Length of each row of a split."""
    warnings: list[str] = field(default_factory=list)

    def count(self, split: str) -> int:
        return sum(len(shard[split]) for shard in self.rows)


def select(shards: Sequence[PreparedShard], rules: Rules) -> Selection:
    """The selection. Raises StageError where nothing is left to train on, or a label is missing."""
    return _Selecting(shards, rules).run()


class _Selecting:
    def __init__(self, shards: Sequence[PreparedShard], rules: Rules) -> None:
        self.shards, self.rules = shards, rules
        self.known = KnownRows(shards)
        self.labels, self.label = self._labels()
        self.steps: list[dict[str, Any]] = []
        split = rules.split
        points = self.known.column("point")
        if split.stratify:
            self.split = assign_stratified(points, self.label, split)
        else:
            self.split = assign(points, split)
        priority = -self.split if split.frozen else np.zeros(len(points), np.int8)
        numbers = np.int32 if len(points) < 1 << 31 else np.int64  # what is held for each row bounds memory
        self.left: Rows = np.argsort(priority, kind="stable").astype(numbers)
        """The rows still in, by place among all, in the order in which they are compared."""

    def run(self) -> Selection:
        dedup, label = self.rules.dedup, self.rules.label
        if dedup.exact:
            self._keep("exact duplicates", self._first_of_equal())
        if dedup.near is not None:
            self._keep("near duplicates", self._near(dedup.near))
        if self.rules.max_overlap is not None:
            over = self.known.column("overlap")[self.left] > self.rules.max_overlap
            self._keep("decontaminate", ~(over & self._is(TRAIN)))
        if label is not None and (label.max_per_class is not None or label.balance):
            train = np.flatnonzero(self._is(TRAIN))
            keep = np.ones(len(self.left), np.bool_)
            chosen = self.left[train]
            keep[train] = capped(self.label[chosen], self.known.column("order")[chosen], label)
            self._keep("max_per_class" if label.max_per_class else "balance", keep)
        times = self._times()
        rows = self._by_shard(times)
        table, warnings = self._checked(rows)
        characters = self.characters[self.left]
        lengths = {split: _repeated(characters, times, self._is(code)) for code, split in enumerate(SPLITS)}
        return Selection(rows, self.steps, self.labels if label else None, table, lengths, warnings)

    @property
    def characters(self) -> npt.NDArray[np.int32]:
        """Length of each row's text: read when asked for."""
        return self.known.column("characters")

    def _labels(self) -> tuple[list[str], npt.NDArray[np.int32]]:
        """All labels, sorted, and each row's place among them; none where nothing asks for them."""
        label = self.rules.label
        names = sorted({name for shard in self.shards for name in shard.counts["labels"]})
        if label is not None:
            met = Counter[str]()
            for shard in self.shards:
                met.update(shard.counts["labels_met"])
            check_known(label.keep or (), met)
            check_classes(names)
        if label is None and not self.rules.split.stratify:
            return names, np.zeros(0, np.int32)
        codes = self.known.column("label")
        start = 0
        for shard in self.shards:
            size = int(shard.counts["rows"])
            places = np.array([names.index(name) for name in shard.counts["labels"]], np.int32)
            codes[start : start + size] = places[codes[start : start + size]] if size else 0
            start += size
        return names, codes

    def _is(self, split: int) -> Mask:
        found: Mask = self.split[self.left] == split
        return found

    def _keep(self, step: str, keep: Mask) -> None:
        before, after = self.left, self.left[keep]
        gone = len(before) - len(after)
        self._account(step, before, after, dropped=Counter({step: gone} if gone else {}))
        self.left = after

    def _account(
        self, step: str, before: Rows, after: Rows, dropped: Counter[str], changed: Counter[str] | None = None
    ) -> None:
        characters = self.characters
        account = Account(
            step,
            rows_in=len(before),
            rows_out=len(after),
            characters_in=int(characters[before].sum()),
            characters_out=int(characters[after].sum()),
            dropped=dropped,
            changed=changed or Counter(),
        )
        self.steps.append(account.to_json())

    def _first_of_equal(self) -> Mask:
        """Half of the hash proposes; the whole one is looked at where that half is met again."""
        keep = ~repeated(self.known.column("text", 0)[self.left])
        met = np.flatnonzero(~keep)
        if len(met):
            keep[met] = first_of_equal(self.known.values("text", self.left[met]))
        return keep

    def _near(self, near: NearDuplicates) -> Mask:
        """Of two test rows none goes for the other's sake: else a new file could take an example out of the test."""
        again = np.zeros(len(self.left), np.bool_)
        # One band at a time: all of them are most of what is known of a row.
        for band in range(number_of_bands(near.threshold, near.num_perm)):
            again |= repeated(self.known.column("bands", band)[self.left])
        met = np.flatnonzero(again)
        keep = np.ones(len(self.left), np.bool_)
        if len(met):
            exempt = self._is(TEST)[met] if self.rules.split.frozen else np.zeros(len(met), np.bool_)
            bands, signatures = (self.known.values(name, self.left[met]) for name in ("bands", "signature"))
            keep[met] = first_of_near(signatures, bands, near.threshold, exempt)
        return keep

    def _times(self) -> npt.NDArray[np.int64] | None:
        """How often each row that is left counts: by its source's weight, the rest of it by the hash of its id.

        None: each counts once.
        """
        weights = np.array([shard.weight for shard in self.shards])[self.known.shards_of(self.left)]
        if (weights == 1).all():
            return None
        drawn = self.known.column("order")[self.left].astype(np.float64) / 2**64
        times: npt.NDArray[np.int64] = np.where(self._is(TRAIN), np.floor(weights + drawn), 1).astype(np.int64)
        counts = {"not drawn": int((times == 0).sum()), "repeated": int((times > 1).sum())}
        dropped, changed = (Counter({name: counts[name]} if counts[name] else {}) for name in counts)
        self._account("weights", self.left, np.repeat(self.left, times), dropped=dropped, changed=changed)
        return times

    def _by_shard(self, times: npt.NDArray[np.int64] | None) -> list[dict[str, Rows]]:
        """For each shard and split the rows that are left, in order, repeated."""
        found: list[dict[str, Rows]] = [{} for _ in self.shards]
        for code, split in enumerate(SPLITS):
            places = np.sort(_repeated(self.left, times, self._is(code)))  # of one shard one after another
            ends = np.searchsorted(places, self.known.ends)
            for number, rows in enumerate(np.split(places, ends[:-1])):
                found[number][split] = rows - self.known.begins[number]
        return found

    def _few_groups(self) -> str:
        """Where all rows are one group, and so in one split, why that is; else nothing."""
        points = self.known.column("point")
        by, kept = self.rules.split.by, len(points)
        if by == "row" or not kept or (points != points[0]).any():
            return ""
        what = "keeps each file whole, and there is one" if by == "file" else "has the same value in every row"
        other = "`by: row` or `by: column:NAME`" if by == "file" else "another column or `by: row`"
        return f"All {kept} rows are in one split, because `split.by: {by}` {what}: use {other}."

    def _checked(self, rows: list[dict[str, Rows]]) -> tuple[dict[str, dict[str, int]] | None, list[str]]:
        """(label -> split -> rows, warnings). Raises StageError where nothing is left to learn from."""
        counts = {split: sum(len(shard[split]) for shard in rows) for split in SPLITS}
        if not counts["train"]:
            few = self._few_groups()
            hint = few or "See `clean`, `dedup` and `split`: together they dropped every row."
            raise StageError("no training example is left", where="split" if few else None, hint=hint)
        settings = self.rules.split
        shares = {"validation": settings.validation, "test": settings.test}
        warnings = []
        empty = [split for split, share in shares.items() if share > 0 and not counts[split]]
        if empty:
            asked = " and ".join(f"{split} ({100 * shares[split]:g}% asked for)" for split in empty)
            why = self._few_groups() or "There are few groups, and none fell there: use another `split.seed`."
            warnings.append(f"{asked} {'is' if len(empty) == 1 else 'are'} empty. {why}")
        if self.rules.label is None:
            return None, warnings
        warnings += spelling_warnings(self.labels)
        codes = self.split[self.left], self.label[self.left]
        table = {
            name: {split: int(((codes[0] == s) & (codes[1] == n)).sum()) for s, split in enumerate(SPLITS)}
            for n, name in enumerate(self.labels)
        }
        missing = [name for name, of in table.items() if not of["train"]]
        if missing:
            raise StageError(
                f"no training example has the label {missing[0]!r}",
                where="label",
                hint="Its files all fell into another split or were dropped: use another `split.seed`, or `by: row`.",
            )
        for split, share in shares.items():
            absent = [name for name, of in table.items() if not of[split]]
            if share > 0 and absent:
                warnings.append(f"split {split} has no example of: {', '.join(absent)}")
        return table, warnings


def _repeated(values: npt.NDArray[Any], times: npt.NDArray[np.int64] | None, here: Mask) -> npt.NDArray[Any]:
    """The values that are `here`, each so many times."""
    return values[here] if times is None else np.repeat(values[here], times[here])

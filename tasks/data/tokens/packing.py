"""Documents laid into rows of one length, so that training pads next to nothing and cuts no document it need not cut.

Best-fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling", 2024): the longest document first, each
into the fullest row that still has room for it. Only a document longer than a row is cut, into whole rows and a rest.
What is made is a plan, not a copy: for every row which stretch of which document stands where. The token ids stay in
the files they were tokenized into, one for each shard of the dataset, so a new shard costs its own tokens and a new
plan.

    <split>/<shard>.safetensors     ids [tokens], the documents of a shard one after another
    <split>.rows.safetensors        first [rows + 1]: where a row's stretches begin among
                                    file, start, length [stretches]: number of the file, first token in it, tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Lengths = npt.NDArray[np.int64]
DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype("<u2"), "I32": np.dtype("<i4")}


def token_dtype(vocab_size: int) -> str:
    """safetensors name of the smallest integer type that holds every id: `U16` below 65,536 tokens, else `I32`."""
    return "U16" if vocab_size < 1 << 16 else "I32"


@dataclass(frozen=True)
class Plan:
    """Rows of stretches: `first` [rows + 1]; document, start (in the document) and length of each stretch."""

    first: Lengths
    document: Lengths
    start: Lengths
    length: Lengths

    @property
    def rows(self) -> int:
        return len(self.first) - 1


def one_to_a_row(lengths: Lengths, context: int) -> Plan:
    """Each document in rows of its own: for held-out data, where every document is judged by itself."""
    document, start, length = _stretches(lengths, context)
    return Plan(np.arange(len(length) + 1), document, start, length)


def best_fit(lengths: Lengths, context: int) -> Plan:
    """Documents of these lengths in as few rows of `context` tokens as best-fit decreasing finds."""
    document, start, length = _stretches(lengths, context)
    row_of = _rows_by_best_fit(length, context)
    # Within a row the longest comes first, as it was placed.
    by_row = _ascending(context - length)[_ascending(row_of)]
    first = np.concatenate([[0], np.cumsum(np.bincount(row_of))]).astype(np.int64)
    return Plan(first, document[by_row], start[by_row], length[by_row])


def _rows_by_best_fit(length: Lengths, context: int) -> Lengths:
    """The row of each stretch, the longest stretch first [stretches].

    Stretches of one length are placed together: the rows with the least room that is enough are filled one after
    another, because what is left of one that has just been begun is always less than what the others have.
    """
    found = np.bincount(length)
    sizes = np.flatnonzero(found)[::-1]
    # Bit `space` is set while a row with that many free places is open: the fullest one with room is one shift away.
    free, open_rows, rows, placed = 0, [list[int]() for _ in range(context + 1)], 0, list[int]()
    for size, count in zip(sizes.tolist(), found[sizes].tolist(), strict=True):
        while count:
            room = free >> size
            space = size + (room & -room).bit_length() - 1 if room else context
            of_each = space // size
            wanted = -(-count // of_each)
            if room:
                chosen = open_rows[space][: -wanted - 1 : -1]  # the one opened last comes first
                del open_rows[space][-wanted:]
                if not open_rows[space]:
                    free ^= 1 << space
            else:
                chosen = list(range(rows, rows + wanted))
                rows += wanted
            filled = chosen if of_each == 1 else [row for row in chosen for _ in range(of_each)][:count]
            placed += filled
            count -= len(filled)
            left = space - of_each * size
            if missing := of_each * len(chosen) - len(filled):  # the last row has room for more of this size
                open_rows[left + missing * size].append(chosen.pop())
                free |= 1 << left + missing * size
            if left and chosen:
                open_rows[left] += chosen
                free |= 1 << left
    return np.array(placed, np.int64)


def _ascending(numbers: Lengths) -> Lengths:
    """The places of numbers >= 0 by their size, equal ones in their order.

    By 16 bits at a time, the last ones first: numpy counts these, where it would compare whole numbers.
    """
    places = np.arange(len(numbers))
    while numbers.any():
        places = places[np.argsort(numbers[places].astype(np.uint16), kind="stable")]
        numbers = numbers >> 16
    return places


def _stretches(lengths: Lengths, context: int) -> tuple[Lengths, Lengths, Lengths]:
    """(document, start, length) of every stretch: a document, or the row-long parts and the rest of a longer one."""
    parts = -(-lengths // context)
    document = np.repeat(np.arange(len(lengths)), parts)
    number = np.arange(len(document)) - np.repeat(np.cumsum(parts) - parts, parts)
    start = number * context
    return document, start, np.minimum(context, lengths[document] - start)


def save_plan(plan: Plan, documents: Sequence[Lengths], file: Path) -> None:
    """Write a plan over the documents of some files, given by the lengths in each, as `<split>.rows.safetensors`."""
    from safetensors.numpy import save_file

    counts = [len(lengths) for lengths in documents]
    of_file = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    begins = np.concatenate([np.cumsum(lengths) - lengths for lengths in documents] or [np.zeros(0, np.int64)])
    tensors = {
        "first": plan.first,
        "file": of_file[plan.document],
        "start": begins[plan.document] + plan.start,
        "length": plan.length.astype(np.int32),
    }
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, file)


class PackedRows(Sequence[dict[str, Any]]):
    """Rows of a `tokens` artifact, put together from the memory-mapped ids when asked for.

    A row is {"input_ids": [tokens], "segments": [stretches]}: the lengths of the stretches, which do not see each
    other.
    """

    def __init__(self, folder: Path, split: str) -> None:
        from safetensors.numpy import load_file

        plan = load_file(folder / f"{split}.rows.safetensors")
        self.first, self.file = plan["first"], plan["file"]
        self.start, self.length = plan["start"], plan["length"]
        self.files = [mapped_ids(path) for path in sorted((folder / split).glob("*.safetensors"))]

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Tokens of each row, [N]."""
        ends = np.concatenate([[0], np.cumsum(self.length, dtype=np.int64)])[self.first]
        found: npt.NDArray[np.int64] = np.diff(ends)
        return found

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        begin, end = self.first[index % len(self)], self.first[index % len(self) + 1]
        parts = [
            self.files[file][start : start + length]
            for file, start, length in zip(
                self.file[begin:end].tolist(),
                self.start[begin:end].tolist(),
                self.length[begin:end].tolist(),
                strict=True,
            )
        ]
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return {"input_ids": ids, "segments": self.length[begin:end]}


def mapped_ids(file: Path) -> npt.NDArray[Any]:
    """The tensor `ids` of a safetensors file, memory-mapped: nothing is read before it is asked for."""
    import json

    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        entry = json.loads(stream.read(size))["ids"]
    begin, end = entry["data_offsets"]
    if begin == end:
        return np.zeros(0, DTYPES[entry["dtype"]])
    return np.memmap(file, DTYPES[entry["dtype"]], "r", 8 + size + begin, tuple(entry["shape"]))

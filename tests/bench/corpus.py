"""Texts for the data benchmark: the Python sources of installed packages, with duplicates planted among them.

Whoever judges near-duplicates by other rules keeps other texts. So what is alike by nature is taken out first, and what
is planted is beyond doubt: exact copies, and copies with one word changed in every 400. A copy bears the name of its
original (`family`), so that whoever keeps one of each has the same survivors.
"""

from __future__ import annotations

import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from tasks.data.selection.dedup import NearDuplicates, bands, first_of_near, signatures

SHORTEST, LONGEST = 400, 40_000
ALIKE = NearDuplicates(threshold=0.25)
COPIED = 10
"""One text in so many has an exact copy, and another one a copy with changes."""
EVERY = 400
WORDS, NUMBERS = re.compile(r"\w+"), re.compile(r"\d+")
BLOCKS = re.compile(r"^(?=(?:def|class|async def|@)\b)", re.MULTILINE)


def write_corpus(folder: Path, megabytes: float, shards: int) -> None:
    """`shards` JSONL files with `text` and `family`, `megabytes` of text (10^6 characters) in all, always the same."""
    random_ = random.Random(1)
    rows = []
    for number, text in enumerate(_different(megabytes * 1e6)):
        family = f"f{number}"
        rows.append((family, text))
        if number % COPIED == 0:
            rows.append((family, text))
        elif number % COPIED == 1:
            rows.append((family, _changed(text)))
    random_.shuffle(rows)
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = (json.dumps({"text": text, "family": family}) + "\n" for family, text in rows[shard::shards])
        (folder / f"shard-{shard:02}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_words(file: Path, megabytes: float, name: str) -> None:
    """A JSONL file of made-up texts of about 400 words, other ones for each name: where size is all that matters."""
    draw = np.random.default_rng(list(name.encode()))
    words = np.array([f"w{number:x}" for number in range(50_000)])
    left, number = megabytes * 1e6, 0
    with file.open("w", encoding="utf-8") as stream:
        while left > 0:
            chosen = words[np.minimum(draw.zipf(1.3, 40_000), len(words)) - 1]
            for part in np.split(chosen, 100):
                line = json.dumps({"text": " ".join(part), "family": f"{name}-{number}"}) + "\n"
                stream.write(line)
                left -= len(line)
                number += 1


def _changed(text: str) -> str:
    """The text with one word in `EVERY` changed, beginning with the one after so many."""
    places = [match.span() for match in WORDS.finditer(text)][EVERY::EVERY]
    for begin, end in reversed(places):
        text = f"{text[:begin]}changed{text[end:]}"
    return text


def _simple(text: str) -> str:
    """Words alone, in small letters, without numbers: as datatrove looks at a text."""
    return " ".join(WORDS.findall(NUMBERS.sub("0", text.lower())))


def _different(characters: float) -> Iterator[str]:
    """Pieces of Python files of which no two are alike."""
    texts: list[str] = []
    size = 0.0
    for piece in _pieces():
        texts.append(piece)
        size += len(piece)
        if size > 2.0 * characters:
            break
    batches = [list(map(_simple, texts[i : i + 500])) for i in range(0, len(texts), 500)]
    found = np.concatenate([signatures(batch, ALIKE) for batch in batches])
    keep = first_of_near(found, bands(found, ALIKE), ALIKE.threshold, np.zeros(len(texts), np.bool_))
    for text, kept in zip(texts, keep, strict=True):
        if kept and characters > 0:
            characters -= len(text)
            yield text


def _pieces() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("purelib")).rglob("*.py")):
        try:
            text = file.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for piece in BLOCKS.split(text):
            if SHORTEST <= len(piece) <= LONGEST and "\0" not in piece:
                yield piece

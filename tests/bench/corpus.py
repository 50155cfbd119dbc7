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

from tasks.data.dedup import NearDuplicates, bands, proposed, signatures
from tasks.data.hashing import Words

SHORTEST, LONGEST = 400, 40_000
ALIKE = NearDuplicates(threshold=0.3, num_perm=64)
COPIED = 10
"""One text in so many has an exact copy, and another one a copy with changes."""
BLOCKS = re.compile(r"^(?=(?:def|class|async def|@)\b)", re.MULTILINE)


def write_corpus(folder: Path, megabytes: float, shards: int) -> None:
    """`shards` JSONL files with `text` and `family`, `megabytes` of text (10^6 characters) in all, always the same."""
    random_ = random.Random(1)
    rows = []
    for number, text in enumerate(_different(megabytes * 1e6)):
        family = f"f{number}"
        rows.append((family, text))
        words = text.split(" ")
        if number % COPIED == 0:
            rows.append((family, text))
        elif number % COPIED == 1 and len(words) > 100:
            words[50::400] = ["changed"] * len(words[50::400])
            rows.append((family, " ".join(words)))
    random_.shuffle(rows)
    folder.mkdir(parents=True)
    for shard in range(shards):
        lines = (json.dumps({"text": text, "family": family}) + "\n" for family, text in rows[shard::shards])
        (folder / f"shard-{shard:02}.jsonl").write_text("".join(lines), encoding="utf-8")


def write_growth(folder: Path, of: Path, share: float) -> None:
    """A further file: new texts, about `share` of what lies in `of`."""
    size = sum(file.stat().st_size for file in of.glob("*.jsonl")) * share
    random_, lines = random.Random(2), []
    words = sorted({word for text in _some(of) for word in text.split()})
    while sum(map(len, lines)) < size:
        text = " ".join(random_.choices(words, k=300))
        lines.append(json.dumps({"text": text, "family": f"new{len(lines)}"}) + "\n")
    (folder / "shard-99.jsonl").write_text("".join(lines), encoding="utf-8")


def write_words(file: Path, megabytes: float) -> None:
    """One JSONL file of made-up texts, as large as is asked for: for memory, where nobody looks at what is said."""
    draw = np.random.default_rng(1)
    words = np.array([f"w{number:x}" for number in range(50_000)])
    left = megabytes * 1e6
    with file.open("w", encoding="utf-8") as stream:
        while left > 0:
            chosen = words[np.minimum(draw.zipf(1.3, 200_000), len(words)) - 1]
            for number, part in enumerate(np.split(chosen, 500)):
                line = json.dumps({"text": " ".join(part), "family": f"{left}-{number}"}) + "\n"
                stream.write(line)
                left -= len(line)


def _some(folder: Path) -> list[str]:
    with sorted(folder.glob("*.jsonl"))[0].open(encoding="utf-8") as stream:
        return [json.loads(line)["text"] for line, _ in zip(stream, range(200), strict=False)]


def _different(characters: float) -> Iterator[str]:
    """Pieces of Python files of which no two are alike."""
    texts: list[str] = []
    size = 0.0
    for piece in _pieces():
        texts.append(piece)
        size += len(piece)
        if size > 2.5 * characters:
            break
    words = Words()
    found = np.concatenate(
        [bands(signatures(texts[i : i + 500], ALIKE, words), ALIKE) for i in range(0, len(texts), 500)]
    )
    for text, alike in zip(texts, proposed(found), strict=True):
        if not alike and characters > 0:
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

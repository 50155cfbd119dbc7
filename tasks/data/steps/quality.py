"""Published heuristics that separate prose from rubbish, rule by rule as their papers state them.

- gopher: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher", 2021, appendix A1.1:
  document length, word length, symbols, bullets, ellipses, letters and stop words.
- repetition: the same paper, table A1: repeated lines, paragraphs and n-grams.
- c4: Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2020, section
  2.2: lines that end like a sentence, pages of at least three sentences, no lorem ipsum and no code. It removes lines,
  so it changes the text. (Its list of bad words is not part of this.)

They were made for English web pages. Code, lists and poems fail them.
"""

from __future__ import annotations

import re
from collections import Counter

from pydantic import Field

from tasks.stage import StageParams

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
BULLETS = ("•", "‣", "▪", "●", "-", "*")
SENTENCE_END = (".", "!", "?", '"', "”")
SENTENCE = re.compile(r"[.!?]+(?:\s|$)")
TOP_NGRAMS = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}


class Quality(StageParams):
    """Which families of rules are applied; see `tasks/data/steps/quality.py`."""

    gopher: bool = Field(False, description="Length, words, symbols, stop words (Rae et al., 2021).")
    repetition: bool = Field(False, description="Repeated lines, paragraphs and n-grams (Rae et al., 2021).")
    c4: bool = Field(False, description="Only lines that are sentences, no code, no lorem ipsum (Raffel et al., 2020).")


def gopher_fault(text: str) -> str | None:
    """Why the Gopher quality rules refuse a text, or None."""
    words = text.split()
    if not 50 <= len(words) <= 100_000:
        return "gopher: not 50 to 100,000 words"
    if not 3 <= sum(map(len, words)) / len(words) <= 10:
        return "gopher: mean word length not 3 to 10"
    if (text.count("#") > 0.1 * len(words)) or (text.count("...") + text.count("…") > 0.1 * len(words)):
        return "gopher: over 0.1 symbols a word"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if sum(line.startswith(BULLETS) for line in lines) > 0.9 * len(lines):
        return "gopher: over 90% bullet lines"
    if sum(line.endswith(("...", "…")) for line in lines) > 0.3 * len(lines):
        return "gopher: over 30% lines end in an ellipsis"
    if sum(any(c.isalpha() for c in word) for word in words) < 0.8 * len(words):
        return "gopher: under 80% of words have a letter"
    if len(STOP_WORDS.intersection(word.lower() for word in words)) < 2:
        return "gopher: under 2 stop words"
    return None


def repetition_fault(text: str) -> str | None:
    """Why the Gopher repetition rules refuse a text, or None."""
    for name, parts, share in (
        ("line", [line.strip() for line in text.split("\n") if line.strip()], 0.30),
        ("paragraph", [part.strip() for part in re.split(r"\n{2,}", text) if part.strip()], 0.30),
    ):
        counts = Counter(parts)
        repeats = {part: n - 1 for part, n in counts.items() if n > 1}
        if sum(repeats.values()) > share * len(parts):
            return f"repetition: over {share:.0%} repeated {name}s"
        if sum(len(part) * n for part, n in repeats.items()) > 0.20 * len(text):
            return f"repetition: over 20% of characters in repeated {name}s"
    words = text.split()
    for n, share in TOP_NGRAMS.items():
        top = Counter(zip(*(words[i:] for i in range(n)), strict=False)).most_common(1)
        if top and top[0][1] > 1 and sum(map(len, top[0][0])) * top[0][1] > share * len(text):
            return f"repetition: over {share:.0%} of characters in the commonest {n}-gram"
    for n, share in REPEATED_NGRAMS.items():
        if _repeated_characters(words, n) > share * len(text):
            return f"repetition: over {share:.0%} of characters in repeated {n}-grams"
    return None


def _repeated_characters(words: list[str], n: int) -> int:
    """Characters of words that lie in an n-gram met before, each counted once."""
    seen: set[tuple[str, ...]] = set()
    repeated, covered = 0, 0
    for i in range(len(words) - n + 1):
        gram = tuple(words[i : i + n])
        if gram in seen:
            repeated += sum(len(word) for word in words[max(i, covered) : i + n])
            covered = i + n
        seen.add(gram)
    return repeated


def c4(text: str) -> tuple[str, str | None]:
    """(the text without the lines C4 drops, why all of it goes or None)."""
    lowered = text.lower()
    if "lorem ipsum" in lowered:
        return text, "c4: lorem ipsum"
    if "{" in text:
        return text, "c4: a curly bracket"
    kept = [
        line
        for line in (line.strip() for line in text.splitlines())
        if line.endswith(SENTENCE_END)
        and not line.endswith(("...", "…"))
        and len(line.split()) >= 5
        and "javascript" not in line.lower()
    ]
    found = "\n".join(kept)
    return found, None if len(SENTENCE.findall(found)) >= 3 else "c4: under 3 sentences"

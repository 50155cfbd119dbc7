"""Exact match and F1 of answers, as the official evaluation of SQuAD 2.0 counts them (Rajpurkar et al., 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)
PUNCTUATION = frozenset(string.punctuation)


def normalized(text: str) -> str:
    """Lower case, without punctuation and articles, words one space apart."""
    kept = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", kept).split())


def exact_match(answer: str, reference: str) -> float:
    """1.0 if both are the same once normalized, else 0.0."""
    return float(normalized(answer) == normalized(reference))


def token_f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the words, each as often as it stands there; "" equals only ""."""
    said, wanted = normalized(answer).split(), normalized(reference).split()
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2.0 * common / (len(said) + len(wanted))


def best(score: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """The best score over the references; none (or none but articles and punctuation) is the reference ""."""
    return max(score(answer, reference) for reference in [r for r in references if normalized(r)] or [""])


def sentences(text: str) -> list[str]:
    """A text cut after `.`, `!` or `?` before a space, and at line breaks."""
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]


def likeliest_sentence(context: str, question: str) -> str:
    """The first sentence that shares the most different words with the question; "" where there is none."""
    asked = set(normalized(question).split())
    return max(sentences(context), key=lambda s: len(asked & set(normalized(s).split())), default="")

"""Made-up reviews: words that are kind or unkind among many that are neither, and now and then a wrong label."""

from __future__ import annotations

import json
import random
from pathlib import Path

KIND = {
    "old": ["good", "fine", "kind", "warm", "bright", "lovely", "honest", "calm"],
    "new": ["stellar", "crisp", "zesty", "mellow", "vivid", "supple", "buoyant", "serene"],
}
UNKIND = {
    "old": ["bad", "poor", "cold", "grim", "stale", "rude", "broken", "dull"],
    "new": ["shoddy", "murky", "brittle", "bleak", "soggy", "hollow", "jagged", "sour"],
}
PLAIN = [
    "the", "a", "table", "door", "paper", "lamp", "box", "was", "is", "very", "in", "on", "with", "my", "house", "and",
    "of", "cup", "road", "shop", "people", "day", "week", "it", "came", "this",
]  # fmt: skip
WRONG = 0.05


def review(draw: random.Random, era: str) -> dict[str, str]:
    """One review and its label."""
    label = draw.choice(["kind", "unkind"])
    words = draw.choices(PLAIN, k=8) + draw.choices((KIND if label == "kind" else UNKIND)[era], k=3)
    draw.shuffle(words)
    if draw.random() < WRONG:
        label = "kind" if label == "unkind" else "unkind"
    return {"text": " ".join(words), "label": label}


def write_reviews(folder: Path, name: str, count: int, *, seed: int, era: str = "old") -> None:
    """`reviews/NAME.jsonl` with `count` reviews; whole or not at all, as data should arrive."""
    draw = random.Random(seed)
    rows = [{"id": f"{name}-{i}", **review(draw, era)} for i in range(count)]
    target = folder / "reviews" / f"{name}.jsonl"
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".part")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(target)


def write_corpus(folder: Path) -> None:
    """`corpus/plain.txt`: lines to learn the tokenizer and the first weights from."""
    draw = random.Random(1)
    lines = [review(draw, draw.choice(["old", "new"]))["text"] for _ in range(800)]
    (folder / "corpus").mkdir(parents=True, exist_ok=True)
    (folder / "corpus" / "plain.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

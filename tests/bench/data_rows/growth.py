"""What it costs to look again: with one more file, and with nothing new."""

from __future__ import annotations

import functools

from tests.bench import inputs
from tests.bench.result import Measurement, Row, Settings
from tests.bench.turns import Turn, cost_ratio, interleaved

MEGABYTES, FILES = 1000.0, 100
TURNS = {"full": 0.0, "grown": float(FILES), "again": 0.0}
"""And how many shards each has to find done."""


@functools.cache
def play(pairs: int) -> dict[str, list[Turn]]:
    """One run serves both rows."""
    given = {
        "corpus": str(inputs.words(MEGABYTES, FILES)),
        "tokenizer": str(inputs.tokenizer("bpe")),
        "growth": str(inputs.words(MEGABYTES / 100, 1)),
    }
    arms = [("forgeline_prepare", {**given, "turn": turn}) for turn in TURNS]
    return dict(zip(TURNS, interleaved(arms, pairs), strict=True))


def measure(turn: str, settings: Settings) -> Measurement:
    turns = play(settings.pairs)
    reused = {one.outcome["shards_reused"] for one in turns[turn]}
    return cost_ratio(
        turns[turn],
        turns["full"],
        names=(turn, "full"),
        incomparable="" if reused == {TURNS[turn]} else f"shards found done: {sorted(reused)}",
    )


ROWS = [
    Row(
        "growth",
        f"seconds of a preparation with 1 % more data in a file of its own over those of the full one ({MEGABYTES:g} MB in "
        f"{FILES} files of made-up texts); both begin with the plan and end with the commit of the packed rows",
        0.03,
        "",
        functools.partial(measure, "grown"),
        at_least=False,
    ),
    Row(
        "no-op",
        "seconds of the same with nothing new over those of the full preparation: what a run finds out before it says so",
        0.01,
        "",
        functools.partial(measure, "again"),
        at_least=False,
    ),
]

"""What it costs to look again: with one more file, and with nothing new."""

from __future__ import annotations

from functools import partial
from typing import Any

from tests.bench import inputs
from tests.bench.result import Measurement, Row, Settings
from tests.bench.turns import cost_ratio, paired_turns

SHARE = 0.01


def measure(turn: str, settings: Settings) -> Measurement:
    given: dict[str, Any] = {"corpus": str(inputs.corpus()), "tokenizer": str(inputs.tokenizer("bpe"))}
    other = {**given, "turn": turn, "growth": str(inputs.growth(SHARE))}
    less, full = paired_turns(("forgeline_prepare", other), ("forgeline_prepare", {**given, "turn": "full"}), settings)
    reused = {turn.outcome["shards_reused"] for turn in less}
    expected = {float(inputs.SHARDS)} if turn == "grown" else {0.0}
    return cost_ratio(
        less,
        full,
        names=(turn, "full"),
        incomparable="" if reused == expected else f"shards reused: {sorted(reused)}",
    )


ROWS = [
    Row(
        "growth",
        "seconds of a preparation with 1 % more data, in a file of its own, over those of a full one; both begin with the "
        "plan and end with the commit of the packed rows",
        0.03,
        "",
        partial(measure, "grown"),
        at_least=False,
    ),
    Row(
        "no-op",
        "seconds of the same with nothing new over those of a full preparation: what a run finds out before it says so",
        0.01,
        "",
        partial(measure, "again"),
        at_least=False,
    ),
]

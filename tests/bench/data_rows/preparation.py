"""The whole preparation: against datatrove, and how much of it packing is."""

from __future__ import annotations

import functools
from typing import Any

from tests.bench import inputs
from tests.bench.pairs import of_median
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.turns import Turn, interleaved, mean_busy, median_seconds, rate_ratio


@functools.cache
def play(pairs: int) -> list[list[Turn]]:
    """One run serves all rows."""
    given: dict[str, Any] = {"corpus": str(inputs.corpus()), "tokenizer": str(inputs.tokenizer("bpe"))}
    arms = [("forgeline_prepare", {**given, "turn": "full"}), ("datatrove_prepare", given)]
    return interleaved(arms, pairs)


def against_datatrove(settings: Settings) -> Measurement:
    ours, theirs = play(settings.pairs)
    kept = [[turn.outcome["survivors"] for turn in turns] for turns in (ours, theirs)]
    counts = [sum(map(len, found[0].values())) for found in kept]
    same = all(a == b for a, b in zip(*kept, strict=True))
    return rate_ratio(
        ours,
        theirs,
        figures=[Figure("survivors", counts[0], "texts")],
        per_turn=(inputs.MEGABYTES, "MB/s"),
        names=("forgeline", "datatrove"),
        incomparable="" if same else f"other survivors: {counts[0]} against {counts[1]}",
    )


def packing_share(settings: Settings) -> Measurement:
    ours, _ = play(settings.pairs)
    return of_median(
        [turn.outcome["packing_seconds"] / turn.seconds for turn in ours],
        figures=[Figure("preparation", median_seconds(ours), "s")],
        busy=mean_busy(ours),
    )


def useful_tokens(settings: Settings) -> Measurement:
    ours, _ = play(settings.pairs)
    return of_median(
        [turn.outcome["useful_share"] for turn in ours],
        figures=[Figure("tokens", ours[0].outcome["tokens"], "")],
        busy=mean_busy(ours),
    )


ROWS = [
    Row(
        "preparation",
        "MB/s from JSONL files to packed rows (read, NFC and length, exact and near duplicates, splits by a column, "
        "tokenized by byte-level BPE, packed) over that of datatrove's blocks on the same cores, with Forgeline's word "
        "pattern in place of spaCy's; each original and its planted copies leave one survivor in both, in the same split",
        3.0,
        "",
        against_datatrove,
    ),
    Row(
        "packing-share",
        "share of the preparation that planning the packed rows and writing the plan takes",
        0.2,
        "",
        packing_share,
        at_least=False,
    ),
    Row(
        "useful-tokens",
        "share of the packed training rows' places that hold a token, context 1,024",
        0.99,
        "",
        useful_tokens,
    ),
]

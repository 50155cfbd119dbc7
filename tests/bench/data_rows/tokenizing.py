"""Tokenizing against what people use: `datasets.map`, and the tokenizers library alone."""

from __future__ import annotations

from functools import partial

from tests.bench import inputs
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.turns import interleaved, rate_ratio

FAST_MEGABYTES, SLOW_MEGABYTES = 48.0, 8.0


def measure(opponent: str, algorithm: str, megabytes: float, settings: Settings) -> Measurement:
    file, size = inputs.texts(megabytes)
    given = {"texts": str(file), "tokenizer": str(inputs.tokenizer(algorithm))}
    ours, theirs = interleaved([("forgeline_tokenize", given), (opponent, given)], settings.pairs)
    same = all(
        a.outcome[name] == b.outcome[name] for a, b in zip(ours, theirs, strict=True) for name in ("ids", "lengths")
    )
    return rate_ratio(
        ours,
        theirs,
        figures=[Figure("texts", size, "MB")],
        per_turn=(size, "MB/s"),
        names=("forgeline", opponent),
        incomparable="" if same else "the token ids differ",
        details={"by_library": ours[-1].outcome["by_library"]},
    )


ROWS = [
    Row(
        "tokenize-map",
        "MB/s of a whole pack stage (rows read from the store, tokenized in one process, stored, packed) over that of "
        "datasets.map(batched=True) with the same byte-level BPE on all cores; the ids are the same",
        20.0,
        "",
        partial(measure, "datasets_map", "bpe", FAST_MEGABYTES),
    ),
    Row(
        "tokenize-library",
        "the same with a WordPiece tokenizer, which the fast backend does not serve, over the tokenizers library's "
        "encode_batch on texts in memory",
        0.9,
        "",
        partial(measure, "encode_batch", "wordpiece", SLOW_MEGABYTES),
    ),
]

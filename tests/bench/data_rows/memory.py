"""Whether memory grows with the size of the file."""

from __future__ import annotations

from tests.bench import inputs
from tests.bench.memory import ChildMemory, written_bytes
from tests.bench.result import Figure, Measurement, Row, Settings
from tests.bench.turns import taking_turns, turn_of

SMALL, LARGE = 100.0, 1000.0


def peak(megabytes: float, settings: Settings) -> tuple[float, float]:
    """(peak of the largest process, MB; seconds)."""
    given = {"corpus": str(inputs.words(megabytes, 1)), "tokenizer": str(inputs.tokenizer("bpe")), "turn": "full"}
    with taking_turns("forgeline_prepare", settings.folder / f"{megabytes:g}", given) as arm:
        memory = ChildMemory(arm.process.pid, written_bytes)
        turn = turn_of(arm)
        memory.stop()
        return memory.largest_mb, turn.seconds


def measure(settings: Settings) -> Measurement:
    small, _ = peak(SMALL, settings)
    large, seconds = peak(LARGE, settings)
    return Measurement(
        value=large / small,
        low=large / small,
        high=large / small,
        interval="one run",
        figures=[
            Figure(f"{SMALL:g} MB", small, "MB"),
            Figure(f"{LARGE:g} MB", large, "MB"),
            Figure(f"{LARGE:g} MB", seconds, "s"),
        ],
    )


ROWS = [
    Row(
        "memory",
        "peak memory of the largest process of a preparation of one JSONL file of 1 GB over that of one of 100 MB; without "
        "pages of mapped files, which the system takes back when it needs them",
        1.1,
        "",
        measure,
        at_least=False,
    )
]

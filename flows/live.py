"""What is happening now: one line for each stage on stderr, kept current while the run goes on.

On a terminal a table that redraws itself at most 8 times a second; anywhere else (a log file, CI) one plain line for
each change of state and at most one line of progress for each stage every 10 seconds. `update` may be called from any
thread as often as one likes: it only stores values, drawing happens on rich's own thread.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from flows.stage_progress import STATES, StageProgress, clock
from infra.terminal import printable

REDRAWS_PER_SECOND = 8
PROGRESS_LINE_SECONDS = 10.0
WIDE = 108
"""Columns a terminal needs for bars and kinds."""
BAR = 16
SETTLED = ("waiting", "reused", "done", "skipped")


class LiveView:
    """Shows a run's stages. `stages`: (name, kind) in order. `quiet`: show nothing but messages."""

    def __init__(self, stages: Sequence[tuple[str, str]], *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stages = {name: StageProgress(name, kind) for name, kind in stages}
        self._quiet, self._lock, self._began = quiet, threading.Lock(), time.monotonic()
        stream = stream or sys.stderr
        terminal = stream.isatty()
        # Said outright, because rich would take FORCE_COLOR for a terminal and write control characters into a log.
        self._console = Console(file=stream, force_terminal=terminal, highlight=False)
        self._live: Live | None = None
        self._whole = False
        if terminal and not quiet and not self._console.is_dumb_terminal:
            self._live = Live(
                console=self._console, get_renderable=self._table, refresh_per_second=REDRAWS_PER_SECOND,
                redirect_stdout=False,
            )  # fmt: skip

    def __enter__(self) -> LiveView:
        if self._live is not None:
            self._live.start()
            # A run that is killed outright cannot show the cursor again, so it is never hidden.
            self._console.show_cursor(True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state of every stage standing, however the run ended."""
        self._whole = True
        if self._live is not None:
            self._live.stop()

    def update(self, stage: str, **fields: Any) -> None:
        """News of a stage: `state`, `reason`, `step`, `total`, `loss`, `<unit>_per_second`; others do no harm."""
        with self._lock:
            entry, now = self._stages[stage], time.monotonic()
            changed = entry.take(fields, now)
            due = entry.active and "step" in entry.values and now - entry.printed_at >= PROGRESS_LINE_SECONDS
            line = self._line(entry, now) if (changed or due) and self._live is None and not self._quiet else None
            if line is not None:
                entry.printed_at = now
                self._print(line)

    def warn(self, stage: str, warnings: Sequence[str]) -> None:
        """What the stage's artifact warns of, a line each."""
        for warning in warnings:
            self.message(f"warning: {stage}: {warning}")

    def message(self, text: str) -> None:
        """A line that stays, above the table."""
        self._print(text)

    def _print(self, text: str) -> None:
        self._console.print(Text(printable(" ".join(text.split("\n")))), soft_wrap=True)

    def _line(self, stage: StageProgress, now: float) -> str:
        values, left = stage.values, stage.left(now)
        parts = [f"[{clock(now - self._began)}]", f"{stage.name} ({stage.kind}): {stage.state}"]
        parts += [stage.steps] if stage.steps else []
        parts += [f"loss {values['loss']:.3f}"] if "loss" in values else []
        speed = _speed(values)
        parts += [f"{speed[1]:,.0f} {speed[0]}/s"] if speed else []
        parts += [f"about {clock(left)} left"] if left is not None else []
        parts += [f"in {clock(stage.took)}"] if stage.took is not None else []
        return " ".join([*parts, f"- {stage.reason}"] if stage.reason else parts)

    def _table(self) -> Table:
        with self._lock:
            now, shown = time.monotonic(), list(self._stages.values())
            wide = self._console.width >= WIDE
            names = max(len(stage.name) for stage in shown) + 2 if shown else 0
            table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
            table.add_column("stage", no_wrap=True, min_width=min(names, 24) - 2)
            if wide:
                table.add_column("kind", no_wrap=True, min_width=9)
            table.add_column("state", no_wrap=True, min_width=10)
            table.add_column("progress" if wide else "step", no_wrap=True, min_width=BAR + 10 if wide else 9)
            for title, width in (("loss", 6), (_unit(self._stages.values()), 8), ("left", 6), ("time", 6)):
                table.add_column(title, justify="right", no_wrap=True, min_width=width)
            # rich would take the room for a long reason from the figures, so the room for it is reckoned here.
            room = self._console.width - min(names, 24) - (73 + BAR if wide else 60)
            table.add_column(style="dim", no_wrap=True)
            if len(shown) + 2 > self._console.height and not self._whole:
                counts = Counter(s.state for s in shown if s.state in SETTLED)
                shown = [s for s in shown if s.state not in SETTLED]
                table.caption, table.caption_justify = ", ".join(f"{n} {state}" for state, n in counts.items()), "left"
            for stage in shown:
                table.add_row(*_row(stage, now, wide, room))
            return table


def _speed(values: Mapping[str, float]) -> tuple[str, float] | None:
    """(unit, how many of it a second) where a training run says so."""
    found = (name for name in values if name.endswith("_per_second"))
    return next(((name.removesuffix("_per_second"), values[name]) for name in found), None)


def _unit(stages: Iterable[StageProgress]) -> str:
    """Title of the column of speeds."""
    return next((f"{speed[0]}/s" for stage in stages if (speed := _speed(stage.values))), "tokens/s")


def _row(stage: StageProgress, now: float, wide: bool, room: int) -> list[Any]:
    glyph, style = STATES.get(stage.state, ("?", ""))
    step, total = stage.values.get("step"), stage.values.get("total")
    progress: Any = stage.steps
    if wide and stage.steps and step is not None and total:
        progress = Table.grid(padding=(0, 1, 0, 0))
        progress.add_row(ProgressBar(total=total, completed=step, width=BAR), stage.steps)
    loss, (_, speed) = stage.values.get("loss"), _speed(stage.values) or ("", None)
    reason = Text(stage.reason if room >= 10 else "")
    reason.truncate(max(room, 0), overflow="ellipsis")
    return [
        Text(stage.name, style="dim" if stage.state in ("waiting", "skipped") else ""),
        *([Text(stage.kind, style="dim")] if wide else []),
        Text(f"{glyph} {stage.state}", style=style),
        progress,
        "" if loss is None else f"{loss:.3f}",
        "" if speed is None else f"{speed:,.0f}",
        clock(stage.left(now)),
        clock(stage.seconds(now)),
        reason,
    ]

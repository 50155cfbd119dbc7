"""What is known of one running stage: its state, its last figures, its pace, how long it will take."""

from __future__ import annotations

from typing import Any

from infra.terminal import one_line

STATES = {
    "waiting": ("·", "dim"),
    "reused": ("=", "cyan"),
    "queued": ("…", "yellow"),
    "running": ("▶", "bold blue"),
    "resuming": ("↻", "bold magenta"),
    "done": ("✓", "green"),
    "failed": ("✗", "bold red"),
    "refused": ("⊘", "bold yellow"),
    "skipped": ("-", "dim"),
}
"""Glyph and style of each state; its name is always shown too."""
ACTIVE = ("running", "resuming")


class StageProgress:
    """Takes news of a stage, each with the time (monotonic seconds) at which it came."""

    def __init__(self, name: str, kind: str) -> None:
        self.name, self.kind, self.state, self.reason = name, kind, "waiting", ""
        self.values: dict[str, float] = {}
        self.took: float | None = None
        self.printed_at = 0.0
        self.uploading = False
        self._started: float | None = None
        self._first: tuple[float, float] | None = None

    @property
    def active(self) -> bool:
        return self.state in ACTIVE

    @property
    def steps(self) -> str:
        """`120/300` while it runs, `uploading` while its result is sent, else empty."""
        if not self.active or "step" not in self.values or not self.values.get("total"):
            return ""
        if self.uploading:
            return "uploading"
        return f"{self.values['step']:.0f}/{self.values['total']:.0f}{' MB' if self.values.get('megabytes') else ''}"

    def take(self, fields: dict[str, Any], now: float) -> bool:
        """Store fields; True if the state changed. A stage that starts again forgets its last attempt's figures."""
        before, self.state = self.state, str(fields.get("state") or self.state)
        if self.state != before and self.active:
            self._started, self.took, self._first, self.values, self.uploading = now, None, None, {}, False
        elif self.state != before and before in ACTIVE and self._started is not None:
            self.took = now - self._started
        if "reason" in fields:
            self.reason = one_line(str(fields["reason"] or ""))
        self.values |= {
            name: float(value)
            for name, value in fields.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        if bool(fields.get("uploading")) != self.uploading and "step" in fields:
            # Steps are bytes from here on: another pace.
            self.uploading, self._first = not self.uploading, None
        if self.active and "step" in self.values and self._first is None:
            # A resumed stage starts at a high step; its pace is that of the steps made since.
            self._first = (now, self.values["step"])
        return self.state != before

    def seconds(self, now: float) -> float | None:
        """How long it has been running, or took; None if it never started."""
        return self.took if self.took is not None or self._started is None else now - self._started

    def left(self, now: float) -> float | None:
        """Seconds to the last step at the pace so far; None while that would be a guess."""
        step, total = self.values.get("step"), self.values.get("total")
        if not self.active or self._first is None or step is None or total is None or step <= self._first[1]:
            return None
        return max((total - step) * (now - self._first[0]) / (step - self._first[1]), 0.0)


def clock(seconds: float | None) -> str:
    """`0.4s`, `38s`, `3:24`, `2:05:00`; empty for None."""
    if seconds is None:
        return ""
    if seconds < 59.5:
        return f"{seconds:.1f}s" if seconds < 9.95 else f"{seconds:.0f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"

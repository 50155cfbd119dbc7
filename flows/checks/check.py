"""What a check is, and how checks are run: one after the other, each with a deadline, whatever became of the others."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from infra.errors import ForgelineError, without_credentials

Level = Literal["ok", "warning", "fault"]
MAY_DIFFER, MUST_NOT_DIFFER = 5.0, 60.0
"""Seconds between two clocks from which on that is a warning, and a fault: S3 refuses signatures of another time."""


@dataclass(frozen=True)
class Finding:
    """What a check found, in one line; and, unless all is well, what to do."""

    level: Level
    said: str
    mend: str = ""


@dataclass(frozen=True)
class Check:
    """`look` finds out, or raises ForgelineError, which is a fault; None: there is nothing to look at.

    seconds: how long it may take; longer is a finding of level `overdue`. after: the name of a check that, where it
    found a fault, leaves nothing to look at here.
    """

    name: str
    look: Callable[[], Finding | None]
    seconds: float = 30.0
    overdue: Level = "fault"
    after: str = ""


@dataclass(frozen=True)
class Result:
    """A check that was run."""

    name: str
    finding: Finding
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self.finding), "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        mend = f"\n{'':26}-> {self.finding.mend}" if self.finding.mend else ""
        return f"{self.finding.level:8} {self.name:16} {self.finding.said}{mend}"


def examine(checks: Iterable[Check], report: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """Run every check; `report` gets each when it is done."""
    results: list[Result] = []
    for check in checks:
        began = time.monotonic()
        if any(result.name == check.after and result.finding.level == "fault" for result in results):
            finding: Finding | None = Finding("warning", "not looked at", f"Mend `{check.after}` first.")
        else:
            finding = _within(check)
        if finding is not None:
            shown = Finding(finding.level, without_credentials(finding.said), without_credentials(finding.mend))
            results.append(Result(check.name, shown, time.monotonic() - began))
            report(results[-1])
    return results


def clocks(whose: str, difference: float) -> Finding:
    """What it means that another clock is `difference` seconds ahead of ours."""
    said = f"{whose} is {abs(difference):.0f} s {'ahead of' if difference > 0 else 'behind'} this machine's"
    if abs(difference) < MAY_DIFFER:
        return Finding("ok", f"{whose} and this machine's agree within {MAY_DIFFER:.0f} s")
    mend = "Let both follow a time server (timedatectl set-ntp true). S3 refuses requests of another time."
    return Finding("fault" if abs(difference) > MUST_NOT_DIFFER else "warning", said, mend)


def _within(check: Check) -> Finding | None:
    found: list[Finding | None] = []
    # A daemon: what hangs in a system call is left behind, and ends with this process.
    thread = threading.Thread(target=lambda: found.append(_looked(check)), name=f"check-{check.name}", daemon=True)
    thread.start()
    thread.join(check.seconds)
    if found:
        return found[0]
    return Finding(check.overdue, f"no answer within {check.seconds:.0f} s", "See whether what it asks is overloaded.")


def _looked(check: Check) -> Finding | None:
    try:
        return check.look()
    except ForgelineError as error:
        where = f"{error.where}: " if error.where else ""
        return Finding("fault", _line(f"{where}{error.what}"), _line(error.hint or ""))
    except Exception as error:  # a bug in one check must not hide what the others find
        said = _line(f"the check itself failed: {type(error).__name__}: {error}")
        return Finding("fault", said, "This is a fault of Forgeline; please report it.")


def _line(text: str) -> str:
    return " ".join(text.split())

"""The check of what runs left on this machine: how much, and how much of it is old."""

from __future__ import annotations

from pathlib import Path

from flows.checks.check import Check, Finding
from infra.local_garbage import KEEP_DAYS, found, old
from infra.platform import prefect_server
from infra.prefect_database import look

SECONDS = KEEP_DAYS * 86400.0
MUCH = 1e9
"""Bytes of what is old from which on there is a warning."""


def checks(home: Path) -> list[Check]:
    return [Check("left here", lambda: left_here(home), seconds=60.0, overdue="warning")]


def left_here(home: Path) -> Finding:
    """Run folders, scratch of killed processes, Prefect's database: number and size."""
    there, gone = found(home), old(home, SECONDS)
    said = []
    for what in ("run folder", "scratch"):
        of = [one for one in there if one.what == what]
        name = what if what == "run folder" else "scratch folder"
        said.append(f"{len(of)} {name}{'s' if len(of) != 1 else ''} ({sum(one.bytes for one in of) / 1e6:.1f} MB)")
    database = look(prefect_server.prefect_home(home), SECONDS)
    if database:
        said.append(f"Prefect's database has {database.runs} flow runs ({database.bytes / 1e6:.1f} MB)")
    stale = sum(one.bytes for one in gone)
    if gone or (database and database.old):
        runs = f" and {database.old} flow runs" if database and database.old else ""
        said.append(
            f"{len(gone)} of the folders ({stale / 1e6:.1f} MB){runs} were not used any more for {KEEP_DAYS:.0f} days"
        )
    if stale + (database.bytes if database and database.old else 0) > MUCH:
        return Finding("warning", "; ".join(said), "`forgeline gc --delete` removes what is not used any more.")
    return Finding("ok", "; ".join(said))

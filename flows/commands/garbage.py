"""`forgeline gc`."""

from __future__ import annotations

from flows.commands.parsing import Commands


def add(commands: Commands) -> None:
    commands.add("gc", lambda arguments: 0, "remove what no ref, run or lineage needs", store=True)

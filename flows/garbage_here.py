"""What old runs left on this machine, outside the store: `gc` and `up` say it, and remove it if they are asked to."""

from __future__ import annotations

from dataclasses import dataclass

from flows.home import home
from flows.prefect_garbage import clean
from infra.local_garbage import Leftover, old, remove
from infra.platform import prefect_server
from infra.prefect_database import look


@dataclass(frozen=True)
class GarbageHere:
    """Folders that go or went, and how many flow runs of Prefect's database (`database_bytes` large)."""

    folders: list[Leftover]
    flow_runs: int
    database_bytes: int

    def lines(self) -> list[str]:
        """A line for each kind."""
        found = []
        for what in ("run folder", "scratch"):
            if of := [one for one in self.folders if one.what == what]:
                found.append(_line(len(of), what, "", sum(one.bytes for one in of), "not used any more"))
        if self.flow_runs:
            found.append(_line(self.flow_runs, "flow run", "prefect", self.database_bytes, "the whole database"))
        return found


def _line(count: int, what: str, of: str, size: int, why: str) -> str:
    return f"{'on this machine':16}  {count:6} {what:11}  {of:12} {size / 1e6:12.2f} MB  {why}"


def garbage_here(seconds: float, *, delete: bool) -> GarbageHere:
    """What was not used for so long. delete: remove it."""
    folder = prefect_server.prefect_home(home())
    if delete:
        folders, before = remove(home(), seconds), clean(home(), seconds)
    else:
        folders, before = old(home(), seconds), look(folder, seconds)
    return GarbageHere(folders, before.old if before else 0, before.bytes if before else 0)

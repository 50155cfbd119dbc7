"""What became of the run that a decision on new data started (`tasks/plan/watching.py`), and whether it begins again.

    journals/<pipeline>/watch-starts-<entry>/000001.json     {"flow_run": ..., "failures": 0}     a start
                                             000002.json     {"flow_run": ..., "failures": 1}     another one
                                             000003.json     {"closed": "done", "why": ...}       nothing follows

A run that failed is begun again `STARTS` times in all; one that was only interrupted, or left out because another one
went on, costs none of them, but there are never more than `MOST`. Then it is given up, and said so, until the data
change or a run of the pipeline on the same data comes to its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from infra import journal
from infra.stored_json import StoredJson
from tasks.plan.watching import Entry, last_entry
from tasks.run.record import find_run

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.pipeline.dag import Pipeline

STARTS = 3
"""Times a run for one state of the data is started, where it fails."""
MOST = 20
"""Times it is started in all, those that were interrupted or left out among them."""
CLOCKS_DIFFER = timedelta(minutes=5)
WORK_DONE = ("ok", "refused")
Ending = Literal["done", "cancelled", "gave up"]
ENDINGS: tuple[Ending, ...] = get_args(Ending)


@dataclass(frozen=True)
class Fate:
    """What became of a start. `cancelled`: by a person, who is not contradicted."""

    state: Literal["under way", "done", "cancelled", "left out", "interrupted", "failed"]
    why: str = ""


class Note(TypedDict, total=False):
    """An entry as it is stored: where a start is found again, or what closed it."""

    flow_run: Any
    run: str
    failed: str
    interrupted: str
    failures: int
    closed: str
    why: str


STARTED = StoredJson("what was noted of a run on new data", Note, "Nothing to do: the next look starts it again.")


@dataclass(frozen=True)
class Start:
    """The newest entry of the journal of a decision's starts. failures: of the starts before this one."""

    number: int
    note: dict[str, Any]
    failures: int
    closed: Ending | None
    why: str


def last_start(store: Store, pipeline: str, entry: Entry) -> Start | None:
    """The newest start of the run of a decision, or how it was closed; None if it was never started."""
    found = journal.newest(store, _name(pipeline, entry), STARTED)
    if found is None:
        return None
    number, content = found
    closed = next((how for how in ENDINGS if how == content.get("closed")), None)
    return Start(number, {**content}, content.get("failures", number - 1), closed, content.get("why", ""))


def note_start(
    store: Store, pipeline: str, entry: Entry, after: Start | None, note: dict[str, Any], fails: int
) -> None:
    """Note that the run was started once more; `fails` of the starts before it failed."""
    journal.append(store, _name(pipeline, entry), after.number if after else 0, {**note, "failures": fails}, STARTED)


def close(store: Store, pipeline: str, entry: Entry, after: Start, how: Ending, why: str) -> None:
    """Note that no start follows."""
    journal.append(store, _name(pipeline, entry), after.number, {"closed": how, "why": why}, STARTED)


def done_by(store: Store, pipeline: Pipeline, entry: Entry) -> str | None:
    """The run that did the work of a decision, whoever started it: on the same data, as the file says, to the end."""
    since = f"{datetime.fromisoformat(entry.at) - CLOCKS_DIFFER:%Y%m%d-%H%M%S}"
    needed = {name for node in pipeline.stages.values() for name in node.needs}
    last = {*pipeline.stages} - needed
    for run in reversed(store.list("runs")):
        if run < since:
            break
        record = find_run(store, run)
        if record is None or record["status"] not in WORK_DONE or record.get("overrides"):
            continue
        made = {stage["name"]: stage["artifact"] for stage in record["stages"]}
        # A look runs the stages that make the data as a run of their own, a search its trials: neither is all of it.
        whole = record["pipeline"] == pipeline.name and last <= {*made}
        if whole and all(made.get(name) == data for name, data in entry.datasets.items()):
            return run
    return None


def given_up(store: Store) -> dict[str, str]:
    """Pipelines whose new data were not trained on though a run was started for them: why, in one sentence."""
    found = {}
    for pipeline in store.list("journals"):
        entry = last_entry(store, pipeline)
        start = last_start(store, pipeline, entry) if entry else None
        if start is not None and start.closed == "gave up":
            found[pipeline] = start.why
    return found


def _name(pipeline: str, entry: Entry) -> str:
    return f"{pipeline}/watch-starts-{entry.run}"

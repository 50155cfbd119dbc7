"""The check of what was decided on new data: was every run that they were worth done?"""

from __future__ import annotations

from flows.checks.check import Check, Finding
from infra.open_store import open_store
from infra.store import Store
from tasks.run.decided_run import given_up

MEND = "Mend what ended those runs, then run the pipeline: forgeline run FILE."


def checks(url: str) -> list[Check]:
    return [Check("new data", lambda: new_data(open_store(url)), after="store", overdue="warning")]


def new_data(store: Store) -> Finding | None:
    """Pipelines whose new data were not trained on; None where nothing is watched."""
    if not store.list("journals"):
        return None
    found = given_up(store)
    said = "; ".join(f"{pipeline}: {why}" for pipeline, why in found.items())
    return Finding("fault", said, MEND) if found else Finding("ok", "every run that new data were worth was started")

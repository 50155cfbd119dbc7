"""What a run does about damage that it meets: set it aside, and have it made again in another round."""

from __future__ import annotations

from flows.monitor import Monitor
from infra.errors import CorruptArtifact, InputChanged, StoreError
from infra.manifest_file import manifest_path
from infra.store import Store
from tasks.pipeline.dag import Pipeline
from tasks.plan.plan import PlannedStage, make_plan


def plan_around_damage(pipeline: Pipeline, store: Store) -> list[PlannedStage]:
    """The plan; manifests that are damaged are set aside first, so that what they described is made again."""
    looked: set[tuple[str, str]] = set()
    while True:
        try:
            return make_plan(pipeline, store)
        except CorruptArtifact as error:
            id = error.kind, error.key
            # None: it is in order now, or gone. That may be so once; it is asked again by the plan.
            if store.quarantine(*id, error.attempt) is None and id in looked:
                raise
            looked.add(id)


def worth_another_round(monitor: Monitor, store: Store) -> bool:
    """Put artifacts that failed verification aside; True if another round makes them again, or finds other inputs."""
    failures = list(monitor.failures.values())
    for error in failures:
        if isinstance(error, CorruptArtifact | InputChanged):
            monitor.live.message(f"{error.where}: {error.what}; {set_aside(error, store)}")
    return any(isinstance(error, CorruptArtifact | InputChanged) for error in failures)


def set_aside(error: CorruptArtifact | InputChanged, store: Store) -> str:
    """Set a damaged artifact aside; what became of it, in words."""
    if isinstance(error, InputChanged):
        return "planned again"
    try:
        moved = store.quarantine(error.kind, error.key, error.attempt)
    except StoreError as trouble:
        return f"it stays where it is: {trouble.what}"
    if moved and store.exists(manifest_path(error.kind, error.key)):
        return "it is quarantined, and written again from its copy"
    return "it is quarantined and will be made again" if moved else "read again, it is in order, or made again already"

"""`forgeline run`: plan first; if everything is reused, say so and stop; else run what is left as a Prefect flow.

Prefect is imported, and a temporary server started, only when there is work. The warm server with torch is started
before that, so that the two start-ups overlap, and the first stages begin meanwhile (`tasks/run/head_start.py`).
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from flows.budget import watch_budget
from flows.home import HOME, home
from flows.live import LiveView
from flows.monitor import Monitor
from flows.prefect_settings import log_to_file, prefect_environment, wait_for_temporary
from flows.repair import plan_around_damage, set_aside, worth_another_round
from infra.artifacts import ArtifactRef, Manifest
from infra.budget import Spent
from infra.errors import CorruptArtifact, GateRefused, InputChanged, Preempted, StageError, StoreError
from infra.folders import writable
from infra.launch.local import LocalLauncher
from infra.launch.slots import Slots
from infra.local_garbage import own
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store
from infra.wandb_replay import WandbReplay
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.stopped import only_dropped
from tasks.plan.chosen_inputs import bound
from tasks.plan.plan import PlannedStage, resolve_refs
from tasks.run.context import RunContext
from tasks.run.execute import StageResult
from tasks.run.head_start import HeadStart
from tasks.run.record import NOTHING, RunRecord, new_run_id
from tasks.run.stage_times import flat
from tasks.run.unsaved_records import deliver

REPAIR_ROUNDS = 2
EXIT_SECONDS = 2.0
SAVE_SECONDS = 15.0
log = logging.getLogger(__name__)
TORCH_PRELOAD = ("tasks.training.loop.train", "tasks.training.engine.engine")


FORKED = threading.Event()
"""Set in a process that the standby forked, with Prefect imported, until its first flow."""
LastWords = Callable[[RunRecord], None]


def run_pipeline(
    pipeline: Pipeline,
    *,
    quiet: bool = False,
    began: LastWords = lambda record: None,
    last_words: LastWords = lambda record: None,
    already: Spent = NOTHING,
    attended: bool = True,
) -> tuple[RunRecord, int]:
    """Run a pipeline to its end. Returns its record and the exit code; stage failures are in the record, not raised.

    began: called with the record before anything runs. last_words: called instead of returning where a cancelled run
    has to end this process at once. already: what of the budget is spent. attended: somebody waits for an answer, so a
    store that cannot be reached is said at once; else it is waited for.
    """
    opening = Patience(0.0) if attended else Patience()
    store = opening.call(lambda: open_store(pipeline.store, probe=True))
    deliver(home(), store)
    store.patience = Patience()
    pipeline = bound(pipeline, store)
    plan = plan_around_damage(pipeline, store)
    run = new_run_id()
    record = RunRecord(run, pipeline, store, already, home() / "runs" / run)
    began(record)
    with LiveView([(line.node.name, line.node.stage.kind) for line in plan], quiet=quiet) as live:
        store.patience.say = live.message
        try:
            if all(line.action in ("reuse", "skip") for line in plan) and _settled(plan, record, store, live):
                status, code = _refused_or_ok(pipeline, {line.node.name for line in plan if line.refused})
                record.finish(status)
                return record, code
            return record, _run_flow(pipeline, plan, store, record, live, last_words)
        except (StoreError, StageError) as error:  # between the stages; what became of them is reported all the same
            record.finish("failed", error)
            return record, error.exit_code


def _settled(plan: list[PlannedStage], record: RunRecord, store: Store, live: LiveView) -> bool:
    """Note that everything is reused; False if some of it was collected, or is damaged, since it was planned with.

    It is named in the record first and looked for then, so garbage collection either sees the name or is seen.
    """
    artifacts = {line.node.name: line.artifact for line in plan if line.artifact}
    record.reuses(artifacts)
    manifests = {name: store.manifest(ref.kind, ref.key) for name, ref in artifacts.items()}
    if None in manifests.values():
        record.reuses(dict.fromkeys(artifacts))
        return False
    try:
        for line in plan:
            _note_settled(line, manifests.get(line.node.name), record, store, live)
    except (CorruptArtifact, InputChanged) as error:  # met by what publishes a release: it is made again, or judged
        live.message(f"{error.where}: {error.what}; {set_aside(error, store)}")
        record.reuses(dict.fromkeys(artifacts))
        return False
    return True


def _note_settled(
    line: PlannedStage, manifest: Manifest | None, record: RunRecord, store: Store, live: LiveView
) -> None:
    if manifest is None:
        record.skip(line.node.name, line.reason)
        live.update(line.node.name, state="skipped", reason=line.reason)
        return
    if line.node.stage.publish:
        line.node.stage.publish(store, manifest)
    record.note(line.node.name, StageResult("reuse", manifest, line.reason, line.refused))
    live.update(line.node.name, state="refused" if line.refused else "reused", reason=line.reason)
    live.warn(line.node.name, manifest.warnings)


def _run_flow(
    pipeline: Pipeline,
    plan: list[PlannedStage],
    store: Store,
    record: RunRecord,
    live: LiveView,
    last_words: LastWords,
) -> int:
    run = record.data["run"]
    folder = writable(home(), HOME) / "runs" / run
    folder.mkdir(parents=True, exist_ok=True)
    own(folder)
    record.save()
    monitor = Monitor(live, record, pipeline.stages.values())
    slots = Slots(len(os.sched_getaffinity(0)))
    launcher = LocalLauncher(folder, preload=TORCH_PRELOAD)
    context = RunContext(
        run=run,
        pipeline=pipeline.name,
        store=store,
        launcher=launcher,
        ready=launcher.ready,
        slots=slots,
        folder=folder,
        producer={"commit": commit_of(pipeline.path), "cores": slots.total, **_machine()},
        notify=monitor.notify,
        tracking=WandbReplay(pipeline.tracking, project=pipeline.name, group=run, folder=folder),
        refused=monitor.refused,
    )
    ended = threading.Event()
    watch_budget(record, context, ended)
    threading.Thread(target=_keep_saving, args=(record, ended), name="record", daemon=True).start()
    threading.Thread(target=_stop_when_cancelled, args=(context, record, ended, last_words), daemon=True).start()
    try:
        for warm in sorted({line.node.stage.warm for line in plan if line.action != "reuse"}):
            context.launcher.prestart(warm=warm)
        with prefect_environment(home(), folder):
            _run_rounds(pipeline, context, monitor)
        _show_ledger(context, record)
    except KeyboardInterrupt:
        context.cancel()
    except (StoreError, StageError):
        raise
    except BaseException:  # Prefect's own way of cancelling a flow run; it goes on to the flow's engine
        record.finish("interrupted")
        raise
    finally:
        context.launcher.close()
        for warning in context.tracking.close(1.0 if context.cancelled.is_set() else 20.0):
            live.message(warning)
        ended.set()
    status, code = _verdict(pipeline, monitor, context.cancelled)
    record.finish(status)
    return code


def _run_rounds(pipeline: Pipeline, context: RunContext, monitor: Monitor) -> None:
    """Run the flow; again, a bounded number of times, if a stage found an input damaged, gone, or made again.

    The first stages of the first round begin before Prefect is even imported.
    """
    known: dict[str, ArtifactRef] = resolve_refs(pipeline, context.store)
    head_start = HeadStart(list(pipeline.stages.values()), known, context, monitor.end)
    if _is_first_flow():
        head_start.begin()
    try:
        from flows.pipeline import run_with_prefect

        log_to_file(context.folder / "prefect.log")
        wait_for_temporary()
        run_with_prefect(pipeline, known, context, monitor, head_start)
    except KeyboardInterrupt:
        context.cancel()
        raise
    except BaseException:  # nobody takes over what has begun
        context.stop("stopped, because Prefect could not begin the flow run", context.grace)
        raise
    finally:
        head_start.close()
    for _ in range(REPAIR_ROUNDS):
        if context.stopping.is_set() or not worth_another_round(monitor, context.store):
            return
        monitor.failures.clear()
        run_with_prefect(pipeline, resolve_refs(pipeline, context.store), context, monitor)


def _is_first_flow() -> bool:
    """False in a deployed flow's process, and in later runs of a search: their flow begins at once."""
    first = "prefect" not in sys.modules or FORKED.is_set()
    FORKED.clear()
    return first


def _show_ledger(context: RunContext, record: RunRecord) -> None:
    """The ledger as a run of the W&B group, beside those of the stages."""
    path = context.folder / "ledger.jsonl"
    context.tracking.follow(path, name="ledger", job_type="ledger", config={})
    path.write_text(json.dumps({"summary": flat(record.times.ledger(record.budget))}) + "\n", encoding="utf-8")
    context.tracking.end(path)


def _verdict(pipeline: Pipeline, monitor: Monitor, cancelled: threading.Event) -> tuple[str, int]:
    failures = monitor.failures.values()
    if cancelled.is_set():
        return "interrupted", 130
    if any(not isinstance(error, Preempted) for error in failures):
        return "failed", 3
    if failures:
        return "interrupted", Preempted.exit_code
    return _refused_or_ok(pipeline, monitor.refused)


def _refused_or_ok(pipeline: Pipeline, refused: set[str]) -> tuple[str, int]:
    """How a run without failures ended: a gate that only dropped a candidate refused nothing."""
    return ("ok", 0) if only_dropped(refused, pipeline.stages.values()) else ("refused", GateRefused.exit_code)


def _stop_when_cancelled(context: RunContext, record: RunRecord, ended: threading.Event, last_words: LastWords) -> None:
    """End the run within seconds of a Ctrl-C or SIGTERM, even if Prefect cannot reach its (just interrupted) server."""
    context.cancelled.wait()
    context.store.patience.give_up()
    context.launcher.close()
    if ended.wait(EXIT_SECONDS):
        return
    # A store that hangs keeps nobody from saying how it ended.
    finishing = threading.Thread(target=record.finish, args=("interrupted",), daemon=True)
    finishing.start()
    finishing.join(EXIT_SECONDS)
    last_words(record)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(130)


def _keep_saving(record: RunRecord, ended: threading.Event) -> None:
    """Keep the stored record fresh while long stages run."""
    while not ended.wait(SAVE_SECONDS):
        record.try_to_save()


def _machine() -> dict[str, Any]:
    """The machine's name and its CPUs, for lineage: part of an artifact's record, never of its identity."""
    return {"host": platform.node(), "cpus": os.cpu_count()}


def commit_of(path: Path) -> str | None:
    """The git commit of the folder the pipeline file lies in, for lineage; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "-C", str(path.resolve().parent), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True, text=True, timeout=5, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def stage_summary(record: dict[str, Any]) -> str:
    """One line on how a run's stages came about: `12 stages: 3 run, 9 reused`."""
    words = {"run": "run", "reuse": "reused", "resume": "resumed"}
    counts: dict[str, int] = {}
    for entry in record["stages"]:
        word = words.get(entry["action"], entry["action"])
        counts[word] = counts.get(word, 0) + 1
    parts = ", ".join(f"{n} {word}" for word, n in counts.items())
    return f"{len(record['stages'])} stages: {parts}"

"""One stage, executed: resolve its key, reuse what is stored, else hold the claim, launch the job, return its artifact.

Knows no Prefect, so that it can be tested and used without one; `tasks/run/prefect_task.py` wraps it. Safe to call from
many threads and, through claims, from many machines: whoever does not get the claim waits and adopts the result.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from infra import claims, refs
from infra.artifacts import ArtifactRef, Manifest
from infra.checkpoints import CheckpointStore
from infra.errors import (
    ForgelineError,
    GateRefused,
    LeaseLost,
    OutOfMemory,
    Preempted,
    SourcesChanged,
    StageError,
    TransientError,
)
from infra.launch.launcher import JobHandle, JobSpec
from tasks.pipeline.node import StageNode
from tasks.plan.plan import resolve_in
from tasks.plan.resolved import Resolved, latest_ref, refuses, stored
from tasks.plan.why import why_it_runs
from tasks.run.context import STOP_SECONDS, RunContext
from tasks.run.job_size import job_size, num_gpus
from tasks.run.worker import METRICS_FILE, read_outcome

POLL_SECONDS = 0.2
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before a job that was cut short is started again; doubled each time."""
LOOKS = 3
"""Times that a stage's key is made where files outside the store change before the job reads them."""
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageResult:
    """What became of a stage: how its artifact came about, why, and whether it is a gate's refusal."""

    action: Literal["run", "reuse", "resume"]
    manifest: Manifest
    reason: str = ""
    refused: bool = False


def execute_stage(node: StageNode, made: dict[str, ArtifactRef], context: RunContext) -> StageResult:
    """Make, resume or reuse one stage's artifact. Raises ForgelineError; `transient` ones are worth another attempt.

    Where the job read other files than its key says, the key is made again, this time with the slots in hand: what is
    written to all the time may change while one waits for hours, but hardly in the moment before a job reads it.
    """
    looks = 0
    while True:
        try:
            result = _execute_at_once(node, made, context) if looks else None
            result = result or _execute(node, made, context)
            assert result is not None, "nobody was waited for in vain"
        except SourcesChanged as error:
            looks += 1
            if looks == LOOKS or context.stopping.is_set():
                raise
            log.warning("%s: %s; its key is made again", node.name, error.what)
            continue
        # Garbage collection may have taken what was about to be reused. By now a ref names it, so it looks after it.
        if context.store.exists(f"{result.manifest.ref.prefix}/manifest.json"):
            return result
        log.warning("%s: what it was going to reuse was collected; it is made again", node.name)


def _execute_at_once(node: StageNode, made: dict[str, ArtifactRef], context: RunContext) -> StageResult | None:
    """With the slots held from the first moment; None where another holder has the claim: he may need slots himself."""
    _, _, slots = job_size(node, context.slots.total)
    with context.slots.hold(slots, context.stopping):
        return _execute(node, made, context, held=True)


def _execute(
    node: StageNode, made: dict[str, ArtifactRef], context: RunContext, *, held: bool = False
) -> StageResult | None:
    """held: the slots are held, and so nobody is waited for."""
    resolved = resolve_in(context.inputs_store or context.store, node, made)
    kind = node.stage.kind
    manifest = stored(context.store, kind, resolved)
    if manifest is not None:
        return _finish(node, StageResult("reuse", manifest, "nothing changed"), context)
    claim = _claim(node, resolved, context, wait=not held)
    if isinstance(claim, Manifest):
        return _finish(node, StageResult("reuse", claim, "made by another run"), context)
    if claim is None:
        return None
    try:
        return _finish(node, _make(node, resolved, claim, context, held=held), context)
    finally:
        claim.release()


def _make(node: StageNode, resolved: Resolved, claim: claims.Claim, context: RunContext, *, held: bool) -> StageResult:
    """Run the stage's job until it is done or stops getting on. held: its slots are held already.

    A failure of the surroundings after which a later checkpoint stands than before costs no retry: a run of days
    may lose its machine many times. One that made no progress is the caller's to judge.
    """
    checkpoints, reached, pause = CheckpointStore(context.store, node.stage.kind, resolved.key), -1, FIRST_PAUSE
    micro = 0
    while True:
        steps = checkpoints.steps()
        reason = (
            f"resumed at step {max(steps)}" if steps else why_it_runs(context.pipeline, node, resolved, context.store)
        )
        try:
            manifest = _run_job(node, resolved, claim, context, reason, resuming=bool(steps), micro=micro, held=held)
            return StageResult("resume" if steps else "run", manifest, reason)
        except OutOfMemory as error:
            log.warning("%s: out of memory, started again with %d examples at once", node.name, error.micro)
            micro = error.micro
        except LeaseLost:
            raise
        except TransientError as error:
            now = max(checkpoints.steps(), default=-1)
            if not context.relaunch or now <= max(reached, max(steps, default=-1)):
                raise
            reached = now
            log.warning("%s: %s; going on from step %d in %.0f s", node.name, error.what, now, pause)
            if context.stopping.wait(pause):
                raise Preempted(f"{context.why} while it waited to go on", where=f"stage {node.name}") from error
            pause = min(2 * pause, LONGEST_PAUSE)


def _claim(node: StageNode, resolved: Resolved, context: RunContext, *, wait: bool) -> claims.Claim | Manifest | None:
    """The claim on the stage's key, or the artifact if another holder committed it meanwhile; None: he is at work."""
    kind, key = node.stage.kind, resolved.key
    claim = claims.try_acquire(context.store, kind, key)
    if claim is None and not wait:
        return None
    if claim is None:
        context.notify(node.name, state="waiting", reason="another run is making it")
        return claims.wait_for(context.store, kind, key, cancelled=context.stopping)
    manifest = stored(context.store, kind, resolved)
    if manifest is not None:
        claim.release()
    return manifest or claim


def _run_job(
    node: StageNode,
    resolved: Resolved,
    claim: claims.Claim,
    context: RunContext,
    reason: str,
    *,
    resuming: bool,
    micro: int,
    held: bool,
) -> Manifest:
    ranks, threads, slots = job_size(node, context.slots.total)
    attempt = uuid.uuid4().hex[:12]
    folder = context.folder / node.name / attempt
    folder.mkdir(parents=True)
    env = {"DS_ACCELERATOR": "cpu"} if node.execution.device == "cpu" else {}
    spec = JobSpec(node.name, folder.resolve(), ranks=ranks, threads=threads, warm=node.stage.warm, env=env)
    context.notify(node.name, state="queued", folder=folder)
    while spec.warm and not held and not context.ready(spec) and not context.stopping.wait(POLL_SECONDS / 4):
        pass
    with nullcontext() if held else context.slots.hold(slots, context.stopping):
        no = context.why if context.stopping.is_set() else context.may_start(node)
        if no:
            raise Preempted(f"not started: {no}", where=f"stage {node.name}", hint="Run again to go on.")
        job = _job(node, resolved, claim, attempt, context, micro)
        (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
        state = "resuming" if resuming else "running"
        context.notify(node.name, state=state, folder=folder, reason=reason, slots=slots, gpus=num_gpus(node, ranks))
        code: int | None = None
        try:
            handle = context.launcher.submit(spec)
            metrics = folder / METRICS_FILE
            config = node.params.model_dump(mode="json")
            context.tracking.follow(metrics, name=node.name, job_type=node.stage.kind, config=config)
            code = _wait(node, handle, claim, context)
            context.tracking.end(metrics, code or 0)
        finally:
            how = "ok" if code == 0 else "preempted" if code == Preempted.exit_code else "failed"
            context.notify(node.name, ended=how)
    outcome = read_outcome(folder, ranks)
    if code == 0 and isinstance(outcome, ArtifactRef):
        manifest = context.store.manifest(outcome.kind, outcome.key)
        assert manifest is not None, "a job that reports success has committed"
        return manifest
    if code == Preempted.exit_code or context.stopping.is_set():
        why = context.why if context.stopping.is_set() else "stopped"
        kept = "it will resume from its last checkpoint" if node.stage.distributed else "it will restart from scratch"
        raise Preempted(f"{why}; {kept} when run again", where=f"stage {node.name}")
    # Where a rank was killed or hung first, what the others say (a broken connection) is only its echo.
    if isinstance(outcome, ForgelineError) and not (code is not None and code < 0):
        raise outcome.within(f"stage {node.name}")
    raise TransientError(
        f"the process exited without a result (exit code {code}{_signal_name(code)}) {handle.reason}".rstrip(),
        where=f"stage {node.name}",
        hint=f"Killed from outside, or out of memory. Log: {spec.log}\n{handle.logs()[-2000:]}",
    )


def _signal_name(code: int | None) -> str:
    import signal

    number = -code if code is not None and code < 0 else (code or 0) - 128
    return f", {signal.Signals(number).name}" if number in set(signal.Signals) else ""


def _wait(node: StageNode, handle: JobHandle, claim: claims.Claim, context: RunContext) -> int | None:
    deadline = time.monotonic() + node.execution.timeout if node.execution.timeout else None
    try:
        while (code := handle.wait(POLL_SECONDS)) is None:
            if context.stopping.is_set():
                handle.cancel(STOP_SECONDS if context.cancelled.is_set() else context.grace)
            if deadline is not None and time.monotonic() > deadline:
                handle.cancel()
                raise StageError(
                    f"ran longer than its timeout of {node.execution.timeout} s", where=f"stage {node.name}"
                )
            claim.check_alive()
            context.notify(node.name, poll=True)
        return code
    except BaseException:
        handle.cancel()
        raise


def _job(
    node: StageNode, resolved: Resolved, claim: claims.Claim, attempt: str, context: RunContext, micro: int
) -> dict[str, Any]:
    inputs: dict[str, list[dict[str, Any]]] = {}
    taken: dict[str, int] = {}
    for item in resolved.items:
        name = item.field
        ref = resolved.inputs[name][taken.get(name, 0)]
        taken[name] = taken.get(name, 0) + 1
        inputs.setdefault(name, []).append({**asdict(ref), "stage": item.stage, "split": item.split})
    return {
        "run": context.run,
        "pipeline": context.pipeline,
        "name": node.name,
        "kind": node.stage.kind,
        "key": resolved.key,
        "identity": resolved.identity,
        "params": node.params.model_dump(mode="json", by_alias=True),
        "sources": [[file.path, file.sha256] for file in resolved.sources] if node.stage.sources else None,
        "inputs": inputs,
        "execution": node.execution.model_dump(mode="json"),
        "micro": micro,
        "previous": _previous(node, context),
        "store": context.store.url,
        "inputs_store": (context.inputs_store or context.store).url,
        "attempt": attempt,
        "submitted": time.time(),
        "claim": claim.to_json(),
        "producer": {**context.producer, "run": context.run, "pipeline": context.pipeline, "stage": node.name},
    }


def _previous(node: StageNode, context: RunContext) -> list[str] | None:
    """Kind and key of what the stage made last."""
    entry = refs.past(context.store, latest_ref(context.pipeline, node.name), 1).newest
    return [entry.kind, entry.key] if entry else None


def _finish(node: StageNode, result: StageResult, context: RunContext) -> StageResult:
    """Move the stage's `latest` ref, publish what the stage publishes, and note a refusal."""
    manifest = result.manifest
    name = latest_ref(context.pipeline, node.name)
    current = refs.past(context.store, name, 1).newest
    if current is None or (current.artifact.key, current.artifact.digest) != (manifest.key, manifest.digest):
        refs.advance(context.store, name, manifest.ref, note=f"run {context.run}")
    if node.stage.publish:
        node.stage.publish(context.store, manifest)
    return replace(result, refused=refuses(node, manifest))


def refusal(node: StageNode, context: RunContext) -> GateRefused:
    """The error that stops what depends on a gate that refused."""
    return GateRefused(
        "the requirements were not met; what depends on it does not run",
        where=f"stage {node.name}",
        hint=f"See the verdict: forgeline show {latest_ref(context.pipeline, node.name)}",
    )

"""`forgeline status|logs|cancel|compare`: runs, while they go on and afterwards."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flows.commands.parsing import Commands, store_of
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.run.comparison import StageComparison

POLL_SECONDS = 0.3
RUN_HELP = "run id; `latest` is the newest, `latest~1` the one before"


def add(commands: Commands) -> None:
    sub = commands.add("status", status, "list runs, and the stages of one", store=True)
    sub.add_argument("run", nargs="?", default="latest", help=RUN_HELP)
    sub = commands.add("logs", logs, "print what the jobs of a run of this machine wrote", store=True)
    sub.add_argument("run", help=RUN_HELP)
    sub.add_argument("stage", nargs="?", help="only this stage's")
    sub.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    sub = commands.add("cancel", cancel, "end a run of this machine; what it has committed stays", store=True)
    sub.add_argument("run", help=RUN_HELP)
    sub = commands.add("compare", compare, "two runs side by side: params, metrics, seconds", store=True)
    sub.add_argument("run", help=RUN_HELP)
    sub.add_argument("other", help="the run to compare it with")
    sub.add_argument("--json", action="store_true", help="machine-readable comparison on stdout")


def status(arguments: argparse.Namespace) -> int:
    from flows.home import home
    from flows.run import stage_summary
    from infra.ledger import BUCKETS
    from tasks.run.decided_run import given_up
    from tasks.run.record import find_run, list_runs, read_run, state_in
    from tasks.run.unsaved_records import deliver

    store = store_of(arguments)
    deliver(home(), store)
    for pipeline, why in given_up(store).items():
        print(f"{pipeline}: new data were not trained on: {why}")
    for name in list_runs(store)[-10:]:
        if (known := find_run(store, name)) is None:
            print(f"{name}  its record is damaged")
            continue
        record = known
        print(
            f"{name}  {record['pipeline']:20} {state_in(store, record):12} {record['seconds']:8.1f} s  "
            f"{_goodput(record.get('ledger')):14}  {stage_summary(record)}"
        )
    record = read_run(store, arguments.run)
    print(f"\n{record['run']}: {_state_in_words(record, state_in(store, record))}")
    under_way = _under_way(record)
    for entry in record["stages"]:
        metrics = ", ".join(f"{k} {v:.4g}" for k, v in list(entry["metrics"].items())[:4])
        note = under_way.get(entry["name"]) or (entry["error"]["what"] if entry["error"] else metrics)
        action = "running" if entry["name"] in under_way else entry["action"]
        print(f"  {entry['name']:14} {entry['kind']:10} {action:8} {entry['seconds']:8.1f} s  {note}")
        for warning in entry.get("warnings", []):
            print(f"    warning: {warning}")
        for sentence in entry.get("refusal", []):
            print(f"    refused: {sentence}")
    if buckets := (record.get("ledger") or {}).get("buckets"):
        spent = {name: buckets[name] for name in BUCKETS if buckets.get(name)}
        print("  " + ", ".join(f"{name.replace('_', ' ')} {seconds:.1f} s" for name, seconds in spent.items()))
    return 0


def _goodput(ledger: dict[str, Any] | None) -> str:
    return f"goodput {ledger['goodput']:4.0%}" if ledger and "goodput" in ledger else ""


def _state_in_words(record: dict[str, Any], state: str) -> str:
    process = record.get("process")
    if isinstance(process, dict) and state == "dead":
        return f"dead: its process {process['pid']} is gone; run the pipeline again to go on"
    if isinstance(process, dict) and state == "running":
        return f"running on {process['host']}, process {process['pid']}"
    if isinstance(process, dict) and state == "silent":
        return f"silent: no word from {process['host']}, process {process['pid']}; run the pipeline again to go on"
    return f"{state}, stopped by {record['stopped']}" if record.get("stopped") else state


def _under_way(record: dict[str, Any]) -> dict[str, str]:
    """How far the stages are whose jobs run on this machine now."""
    from flows.run_folder import job_folders
    from tasks.run.record import state_of

    if state_of(record) != "running":
        return {}
    return {job.stage: job.progress() or "starting" for job in job_folders(record["run"]) if not job.ended}


def logs(arguments: argparse.Namespace) -> int:
    from flows.run_folder import run_folder
    from tasks.run.record import read_run

    store = store_of(arguments)
    record = read_run(store, arguments.run)
    names = [entry["name"] for entry in record["stages"]]
    if arguments.stage and arguments.stage not in names:
        raise UsageError(f"run {record['run']} has no stage {arguments.stage!r}; it has {', '.join(names)}")
    if not run_folder(record["run"]).exists():
        where = record["process"]["host"] if isinstance(record.get("process"), dict) else "another machine"
        hint = f"Logs stay where the run ran ({where}), in $FORGELINE_HOME. A run that reused everything has none."
        raise UsageError(f"no logs of run {record['run']} in {run_folder(record['run']).parent}", hint=hint)
    for stage, line in _lines(store, record["run"], arguments.stage, follow=arguments.follow):
        print(line if arguments.stage else f"{stage} | {line}", flush=True)
    return 0


def _lines(store: Store, run: str, stage: str | None, *, follow: bool) -> Iterator[tuple[str, str]]:
    """(stage, line) of every log, and of what is added until the run ends."""
    from flows.run_folder import job_folders
    from infra.tail import Tail
    from tasks.run.record import read_run, state_of

    tails: dict[Any, Tail] = {}
    while True:
        # Asked first: all that was written before the end is then read in the last round.
        ended = not follow or state_of(read_run(store, run)) != "running"
        for job in job_folders(run, stage):
            tail = tails.setdefault(job, Tail(job.log))
            while lines := tail.lines():
                yield from ((job.stage, line.decode(errors="replace")) for line in lines)
            if ended and tail.rest:
                yield job.stage, tail.rest.decode(errors="replace")
        if ended:
            return
        time.sleep(POLL_SECONDS)


def cancel(arguments: argparse.Namespace) -> int:
    from flows.cancel import cancel_run
    from tasks.run.record import read_run

    store = store_of(arguments)
    print(cancel_run(store, read_run(store, arguments.run)))
    return 0


def compare(arguments: argparse.Namespace) -> int:
    from infra.manifests import undamaged
    from tasks.run.comparison import compare_runs
    from tasks.run.record import read_run

    store = store_of(arguments)
    records = [read_run(store, name) for name in (arguments.run, arguments.other)]
    stages = compare_runs(records[0], records[1], lambda artifact: undamaged(store, artifact["kind"], artifact["key"]))
    if arguments.json:
        shown = {"runs": [record["run"] for record in records], "stages": [stage.to_json() for stage in stages]}
        print(json.dumps(shown, indent=2))
        return 0
    for record in records:
        print(f"{record['run']}: {record['pipeline']}, {record['status']}, {record['seconds']:.1f} s")
    for stage in stages:
        _print_comparison(stage)
    return 0


def _print_comparison(stage: StageComparison) -> None:
    from tasks.run.comparison import difference

    def figure(value: Any) -> str:
        return "-" if value is None else f"{value:.6g}" if isinstance(value, int | float) else json.dumps(value)

    actions = " / ".join(action or "-" for action in stage.actions)
    same = ", the same artifact" if stage.same_artifact else ""
    seconds = " -> ".join("-" if value is None else f"{value:.1f} s" for value in stage.seconds)
    sys.stdout.write(f"\n{stage.name}: {actions}{same}, {seconds}\n")
    for path, pair in stage.params.items():
        sys.stdout.write(f"  {path}: {figure(pair[0])} -> {figure(pair[1])}\n")
    for name, values in stage.metrics.items():
        if values[0] != values[1]:
            change = difference(values)
            shown = "" if change is None else f"  ({change:+.4g})"
            sys.stdout.write(f"  {name}: {figure(values[0])} -> {figure(values[1])}{shown}\n")

"""`forgeline validate|schema|plan|run|prepare`: commands on a pipeline file."""

from __future__ import annotations

import argparse
import json
import signal
from typing import TYPE_CHECKING

from flows.commands.parsing import VERIFY_HELP, Commands, count, load, loader, say
from flows.commands.reports import write_report
from infra.errors import without_credentials

if TYPE_CHECKING:
    from tasks.pipeline.dag import Pipeline
    from tasks.run.record import RunRecord


def add(commands: Commands) -> None:
    commands.add("validate", validate, "check a pipeline file and list every fault", file=True)
    commands.add("schema", print_schema, "print the JSON Schema of pipeline files, for editors")
    sub = commands.add("plan", plan, "say what would run, be reused or resume, and why", file=True)
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable plan on stdout")
    sub = commands.add("run", run, "run a pipeline", file=True)
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    sub.add_argument("--quiet", action="store_true", help="no live view")
    sub.add_argument("--no-report", action="store_true", help="do not write the HTML report at the end")
    text = "make the parts of a data stage on many machines (Dask), before `run` needs them"
    sub = commands.add("prepare", prepare, text, file=True)
    sub.add_argument("stage", help="stage of kind dataset or pack whose inputs are made")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--dask", metavar="tcp://HOST:8786", help="scheduler whose workers make them")
    where.add_argument("--workers", type=count, metavar="N", help="processes of this machine (default: its cores)")
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable result on stdout")


def validate(arguments: argparse.Namespace) -> int:
    from tasks.pipeline.search import Results

    pipeline = loader(arguments)(Results())
    if pipeline.deploy.schedules or pipeline.deploy.watch:
        from flows.schedules import upcoming  # Prefect's own reading takes a second to import

        upcoming(pipeline)
    print(f"{arguments.file}: ok, {len(pipeline.stages)} stages")
    return 0


def print_schema(arguments: argparse.Namespace) -> int:
    from tasks.pipeline.schema import schema

    print(json.dumps(schema(), indent=2))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    from infra.open_store import open_store
    from tasks.pipeline.dag import default_store_is
    from tasks.plan.estimates import estimate_plan
    from tasks.plan.plan import make_plan

    pipeline = load(arguments)
    store = open_store(pipeline.store)
    lines = make_plan(pipeline, store, around_damage=True)
    expected = estimate_plan(lines, store, pipeline.name)
    named = "" if pipeline.names_store else f", {default_store_is()}"
    say(f"store: {without_credentials(pipeline.store)}{named}")
    known = {name: found.to_json() if found else None for name, found in expected.stages.items()}
    rows = [{**line.to_json(), "estimate": known.get(line.node.name)} for line in lines]
    if arguments.json:
        print(json.dumps({"stages": rows, "estimate": expected.to_json()}, indent=2))
        return 0
    widths = {column: max(len(str(row[column])) for row in rows) for column in ("name", "kind", "action")}
    for row in rows:
        cells = "  ".join(str(row[column]).ljust(width) for column, width in widths.items())
        takes = expected.stages.get(row["name"])
        print(f"{cells}  {(row['key'] or '')[:10]:10}  {row['reason']}{f'; {takes}' if takes else ''}")
    for row in rows:
        for warning in row["warnings"]:
            print(f"warning: {row['name']}: {warning}")
    if expected.stages:
        print(expected)
    return 0


def run(arguments: argparse.Namespace) -> int:
    from flows.run import run_pipeline
    from flows.search import run_trials
    from tasks.run.record import spent_by

    def print_summary(record: RunRecord) -> None:
        if arguments.json:
            print(json.dumps(record.summary()), flush=True)

    rounds: list[RunRecord] = []

    def once(pipeline: Pipeline) -> int:
        record, code = run_pipeline(pipeline, quiet=arguments.quiet, last_words=print_summary, already=spent_by(rounds))
        rounds.append(record)
        _how_it_ended(record, report=not arguments.no_report)
        return code

    # As Ctrl-C: its own way of ending would leave a Prefect server behind, and a record that says "running".
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        pipeline, code = run_trials(loader(arguments), once, say)
        if pipeline is not None:
            code = once(pipeline)
        return code
    finally:
        if rounds:
            print_summary(rounds[-1])


def _how_it_ended(record: RunRecord, *, report: bool) -> None:
    from flows.home import home
    from flows.run import stage_summary
    from infra.errors import StoreError

    for entry in record.data["stages"]:
        if entry["error"]:
            error = entry["error"]
            hint = f"\n  {error['hint']}" if error["hint"] else ""
            say(f"forgeline: {error['where']}: {error['what']}{hint}")
        for sentence in entry["refusal"] if record.data["status"] == "refused" else ():
            say(f"forgeline: gate {entry['name']} refused: {sentence}")
    if record.data["status"] == "failed" and record.data["stopped"]:
        say(f"forgeline: the run could not go on: {record.data['stopped']}")
    say(f"{record.data['status']}: {stage_summary(record.data)}, {record.data['seconds']:.1f} s")
    if record.unsaved is not None:
        say(f"forgeline: the store did not take the record of this run: {record.unsaved.what}")
        say(f"  It is kept in {home() / 'runs' / record.data['run']}; the next `run` or `status` here stores it.")
    if report:
        try:
            say(f"report: {write_report(record.data, record.store, None)}")
        except (StoreError, OSError) as error:
            why = error.what if isinstance(error, StoreError) else str(error)
            say(f"forgeline: no report, `forgeline report` writes it later: {why}")


def prepare(arguments: argparse.Namespace) -> int:
    from flows.prepare import prepare as make

    done = make(load(arguments), arguments.stage, dask=arguments.dask, workers=arguments.workers, say=say)
    print(json.dumps(done.to_json()) if arguments.json else done)
    return 0

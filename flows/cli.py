"""The command line: `forgeline validate|schema|plan|run|prepare|checkpoint|doctor|status|show|report|up|down`.

stdout carries the result (text, or JSON with `--json`), stderr the progress and the errors. Exit codes: 0 ok, 2 bad
config or usage, 3 a stage or a check failed, 4 the gate refused, 75 preempted and resumable, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import ForgelineError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.search import Load
    from infra.store import Store
    from tasks.pipeline import Pipeline
    from tasks.run_record import RunRecord


VERIFY_HELP = "read every source file, whether or not its size and time say that it changed"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `forgeline` script; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if getattr(arguments, "verify", False):
        os.environ["FORGELINE_VERIFY_SOURCES"] = "1"  # for the processes of the run as well
    try:
        code: int = arguments.command(arguments)
        return code
    except ForgelineError as error:
        print(f"forgeline: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="forgeline", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(
        name: str, function: Any, text: str, *, file: bool = False, store: bool = False, among: Any = commands
    ) -> Any:
        sub = among.add_parser(name, help=text, description=text)
        sub.set_defaults(command=function)
        if file:
            sub.add_argument("file", type=Path, help="pipeline file (YAML)")
            sub.add_argument(
                "--set", action="append", default=[], metavar="PATH=VALUE", dest="overrides",
                help="override a field, e.g. stages.base.learning_rate=1e-4; may be repeated",
            )  # fmt: skip
        if file or store:
            sub.add_argument("--store", help="folder or s3://bucket/prefix; default: the file's, or .forgeline/store")
        return sub

    command("validate", validate, "check a pipeline file and list every fault", file=True)
    command("schema", print_schema, "print the JSON Schema of pipeline files, for editors")
    sub = command("plan", plan, "say what would run, be reused or resume, and why", file=True)
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable plan on stdout")
    sub = command("run", run, "run a pipeline", file=True)
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    sub.add_argument("--quiet", action="store_true", help="no live view")
    sub.add_argument("--no-report", action="store_true", help="do not write the HTML report at the end")
    text = "make the parts of a data stage on many machines (Dask), before `run` needs them"
    sub = command("prepare", prepare, text, file=True)
    sub.add_argument("stage", help="stage of kind dataset or pack whose inputs are made")
    where = sub.add_mutually_exclusive_group()
    where.add_argument("--dask", metavar="tcp://HOST:8786", help="scheduler whose workers make them")
    where.add_argument("--workers", type=_count, metavar="N", help="processes of this machine (default: its cores)")
    sub.add_argument("--verify", action="store_true", help=VERIFY_HELP)
    sub.add_argument("--json", action="store_true", help="machine-readable result on stdout")
    checks = commands.add_parser("doctor", help="try things out before a long run").add_subparsers(
        required=True, metavar="CHECK"
    )
    text = "train a few steps, kill the training, resume it, compare with an undisturbed one"
    sub = command("resume", doctor_resume, text, file=True, among=checks)
    sub.add_argument("--stage", help="stage to try (default: every stage that trains and whose inputs are made)")
    sub.add_argument("--steps", type=int, default=20, help="steps to train (default: 20)")
    sub.add_argument("--json", action="store_true", help="machine-readable proof on stdout")
    sub = command(
        "checkpoint", checkpoint, "list what a training has saved, or write its weights to a folder", file=True
    )
    sub.add_argument("stage", help="stage name, e.g. base")
    sub.add_argument("--step", type=int, help="which checkpoint (default: the newest)")
    sub.add_argument("--to", type=Path, metavar="FOLDER", help="write config.json and model.safetensors there")
    sub = command("status", status, "list runs, and the stages of one", store=True)
    sub.add_argument("run", nargs="?", default="latest", help="run id (default: the newest)")
    sub = command("show", show, "show what a ref points to: identity, inputs, metrics, files", store=True)
    sub.add_argument("ref", help="ref name, e.g. stdlib-code/production or stdlib-code/base/latest")
    sub.add_argument("--json", action="store_true", help="the whole manifest as JSON")
    sub = command("report", report, "write the HTML report of a run", store=True)
    sub.add_argument("run", nargs="?", default="latest", help="run id (default: the newest)")
    sub.add_argument("-o", "--output", type=Path, help="file to write (default: .forgeline/reports/RUN.html)")
    sub = command("up", up, "start a Prefect server with its UI, and a worker, in the background")
    sub.add_argument("--port", type=_port, default=4200, help="port of the UI and API on 127.0.0.1")
    command("down", down, "stop what `forgeline up` started")
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port: use a number from 1 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes: use 1 or more")
    return int(text)


def _load(arguments: argparse.Namespace) -> Pipeline:
    from flows.search import with_known_trials

    return with_known_trials(_loader(arguments))


def _loader(arguments: argparse.Namespace) -> Load:
    from tasks.pipeline import load_pipeline

    return lambda results: load_pipeline(arguments.file, arguments.overrides, arguments.store, results)


def _open_store(arguments: argparse.Namespace) -> Store:
    from infra.store import Store
    from tasks.pipeline import default_store

    return Store.open(arguments.store or default_store())


def validate(arguments: argparse.Namespace) -> int:
    from tasks.search import Results

    pipeline = _loader(arguments)(Results())
    print(f"{arguments.file}: ok, {len(pipeline.stages)} stages")
    return 0


def print_schema(arguments: argparse.Namespace) -> int:
    from tasks.pipeline_schema import schema

    print(json.dumps(schema(), indent=2))
    return 0


def plan(arguments: argparse.Namespace) -> int:
    from infra.store import Store
    from tasks.plan import make_plan

    pipeline = _load(arguments)
    lines = make_plan(pipeline, Store.open(pipeline.store))
    if arguments.json:
        print(json.dumps({"stages": [line.to_json() for line in lines]}, indent=2))
        return 0
    rows = [line.to_json() for line in lines]
    widths = {column: max(len(str(row[column])) for row in rows) for column in ("name", "kind", "action")}
    for row in rows:
        cells = "  ".join(str(row[column]).ljust(width) for column, width in widths.items())
        print(f"{cells}  {(row['key'] or '')[:10]:10}  {row['reason']}")
    return 0


def run(arguments: argparse.Namespace) -> int:
    from flows.run import run_pipeline
    from flows.search import run_trials

    def say(record: RunRecord) -> None:
        if arguments.json:
            print(json.dumps(record.summary()), flush=True)

    last: list[RunRecord] = []

    def once(pipeline: Pipeline) -> int:
        record, code = run_pipeline(pipeline, quiet=arguments.quiet, last_words=say)
        _say_how_it_ended(record, report=not arguments.no_report)
        last[:] = [record]
        return code

    # As Ctrl-C: its own way of ending would leave a Prefect server behind, and a record that says "running".
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    pipeline, code = run_trials(_loader(arguments), once, _say)
    if pipeline is not None:
        code = once(pipeline)
    say(last[0])
    return code


def _say_how_it_ended(record: RunRecord, *, report: bool) -> None:
    from flows.run import stage_summary

    written = _write_report(record.data, record.store, None) if report else None
    for entry in record.data["stages"]:
        if entry["error"]:
            error = entry["error"]
            hint = f"\n  {error['hint']}" if error["hint"] else ""
            print(f"forgeline: {error['where']}: {error['what']}{hint}", file=sys.stderr)
    print(f"{record.data['status']}: {stage_summary(record.data)}, {record.data['seconds']:.1f} s", file=sys.stderr)
    if written:
        print(f"report: {written}", file=sys.stderr)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(arguments: argparse.Namespace) -> int:
    from flows.prepare import prepare as make

    done = make(_load(arguments), arguments.stage, dask=arguments.dask, workers=arguments.workers, say=_say)
    print(json.dumps(done.to_json()) if arguments.json else done)
    return 0


def _write_report(record: dict[str, Any], store: Store, output: Path | None) -> Path:
    from flows.run import home
    from tasks.release.report import render_report
    from tasks.release.stored_evidence import evidence_loader

    path = output or home() / "reports" / f"{record['run']}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(record, evidence_loader(store)), encoding="utf-8")
    return path


def doctor_resume(arguments: argparse.Namespace) -> int:
    from flows.doctor import diagnose_resume

    found = diagnose_resume(_load(arguments), arguments.stage, arguments.steps, _say)
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
    return 0 if found.holds else 3


def checkpoint(arguments: argparse.Namespace) -> int:
    from flows.checkpoints import checkpoints_of, describe, export

    found = checkpoints_of(_load(arguments), arguments.stage)
    print(export(found, arguments.step, arguments.to) if arguments.to else describe(found))
    return 0


def status(arguments: argparse.Namespace) -> int:
    from flows.run import stage_summary
    from tasks.run_record import list_runs, read_run

    store = _open_store(arguments)
    for name in list_runs(store)[-10:]:
        record = read_run(store, name)
        print(
            f"{name}  {record['pipeline']:20} {record['status']:12} {record['seconds']:8.1f} s  {stage_summary(record)}"
        )
    record = read_run(store, arguments.run)
    print(f"\n{record['run']}")
    for entry in record["stages"]:
        metrics = ", ".join(f"{k} {v:.4g}" for k, v in list(entry["metrics"].items())[:4])
        note = entry["error"]["what"] if entry["error"] else metrics
        print(f"  {entry['name']:14} {entry['kind']:10} {entry['action']:8} {entry['seconds']:8.1f} s  {note}")
    return 0


def show(arguments: argparse.Namespace) -> int:
    from infra import refs
    from tasks.plan import read_ref

    store = _open_store(arguments)
    ref = read_ref(store, arguments.ref)
    manifest = store.manifest(ref.kind, ref.key)
    if manifest is None:
        raise UsageError(f"{arguments.ref} points to {ref.kind} {ref.key}, which is no longer in the store")
    if arguments.json:
        print(json.dumps(manifest.to_json(), indent=2))
        return 0
    print(f"{arguments.ref} -> {manifest.type} made by {manifest.kind}")
    print(f"key      {manifest.key}\ncontent  {manifest.digest}")
    print(f"size     {manifest.size / 1e6:.2f} MB in {len(manifest.payload)} files")
    for title, values in (("params", manifest.identity["params"]), ("metrics", manifest.metrics)):
        print(f"{title}:")
        for name, value in values.items():
            print(f"  {name}: {value if isinstance(value, str) else json.dumps(value)}")
    print("inputs:")
    for name, items in manifest.inputs.items():
        for item in items:
            print(f"  {name}: {item['stage']} ({item['type']}, {item['kind']} {item['key'][:12]})")
    print("files:")
    for file in manifest.payload:
        print(f"  {file.path}  {file.size:,} bytes  sha256 {file.sha256[:12]}")
    print("history:")
    for entry in refs.history(store, arguments.ref):
        print(f"  {entry.number}: {entry.artifact.kind} {entry.artifact.key[:12]}  {entry.note}")
    return 0


def report(arguments: argparse.Namespace) -> int:
    from tasks.run_record import read_run

    store = _open_store(arguments)
    print(_write_report(read_run(store, arguments.run), store, arguments.output))
    return 0


def up(arguments: argparse.Namespace) -> int:
    from flows.run import home
    from infra.platform import prefect_server

    info = prefect_server.up(home(), port=arguments.port)
    print(info)
    return 0


def down(arguments: argparse.Namespace) -> int:
    from flows.run import home
    from infra.platform import prefect_server

    print(prefect_server.down(home()))
    return 0


if __name__ == "__main__":
    sys.exit(main())

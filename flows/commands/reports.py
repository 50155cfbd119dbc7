"""`forgeline show|report`: what is in a store, for people."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.commands.parsing import Commands, store_of
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.store import Store


def add(commands: Commands) -> None:
    sub = commands.add("show", show, "show what a ref points to: identity, inputs, metrics, files", store=True)
    sub.add_argument("ref", help="ref name, e.g. stdlib-code/production or stdlib-code/base/latest")
    sub.add_argument("--json", action="store_true", help="the whole manifest as JSON")
    sub = commands.add("report", report, "write the HTML report of a run", store=True)
    sub.add_argument("run", nargs="?", default="latest", help="run id (default: the newest)")
    sub.add_argument("-o", "--output", type=Path, help="file to write (default: .forgeline/reports/RUN.html)")


def show(arguments: argparse.Namespace) -> int:
    from infra import refs
    from tasks.plan.resolved import read_ref

    store = store_of(arguments)
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
    for warning in manifest.warnings:
        print(f"warning: {warning}")
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
        print(
            f"  {entry.number}: {entry.artifact.kind} {entry.artifact.key[:12]}  {entry.at}  {entry.by}  {entry.note}"
        )
    return 0


def report(arguments: argparse.Namespace) -> int:
    from tasks.run.record import read_run

    store = store_of(arguments)
    print(write_report(read_run(store, arguments.run), store, arguments.output))
    return 0


def write_report(record: dict[str, Any], store: Store, output: Path | None) -> Path:
    from flows.home import home
    from tasks.release.report.page import render_report
    from tasks.release.report.stored_evidence import evidence_loader

    path = output or home() / "reports" / f"{record['run']}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render_report(record, evidence_loader(store)), encoding="utf-8")
    return path

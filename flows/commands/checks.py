"""`forgeline doctor`: what works here, and how to mend what does not."""

from __future__ import annotations

import argparse
import json
import os

from flows.commands.parsing import Commands


def add(commands: Commands) -> Commands:
    """Adds the command; returns where checks that have a name of their own are added."""
    text = "check this machine, the store, Prefect and W&B; or try out what is named"
    sub, checks = commands.group("doctor", text, "CHECK", alone=doctor)
    sub.add_argument("--store", help="folder or s3://bucket/prefix; default: FORGELINE_STORE, or .forgeline/store")
    sub.add_argument("--json", action="store_true", help="machine-readable findings on stdout")
    return checks


def doctor(arguments: argparse.Namespace) -> int:
    from flows.checks import here, machine, new_data, prefect_server, store, tracking
    from flows.checks.check import Result, examine
    from flows.home import home
    from tasks.pipeline.dag import default_store

    url = arguments.store or default_store()
    checks = [*machine.checks(home()), *here.checks(home()), *store.checks(url), *new_data.checks(url)]
    checks += [*prefect_server.checks(home()), *tracking.checks(os.environ)]

    def report(result: Result) -> None:
        if not arguments.json:
            print(result, flush=True)

    results = examine(checks, report)
    levels = [result.finding.level for result in results]
    if arguments.json:
        print(json.dumps({"ok": "fault" not in levels, "checks": [result.to_json() for result in results]}, indent=2))
    return 3 if "fault" in levels else 0

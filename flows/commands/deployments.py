"""`forgeline deploy|watch`: a pipeline that runs by itself."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from flows.commands.parsing import Commands, load
from infra.errors import StageError


def add(commands: Commands) -> None:
    text = "register a pipeline with Prefect: its schedules, its form of parameters, what it watches"
    sub = commands.add("deploy", deploy, text, file=True)
    sub.add_argument("--dry-run", action="store_true", help="only say what differs from what is registered")
    text = "look at a pipeline's data once, and start its run where they changed and are worth it"
    sub = commands.add("watch", watch, text, file=True)
    sub.add_argument("--here", action="store_true", help="run it in this process instead of where it is deployed")


def deploy(arguments: argparse.Namespace) -> int:
    from flows.home import home
    from flows.prefect_settings import require_server
    from flows.run import commit_of

    pipeline = load(arguments)
    require_server(home())
    from flows.deploy import deploy as register
    from flows.registration import registration
    from flows.schedules import upcoming

    schedules = upcoming(pipeline)
    wanted = registration(pipeline, working_dir=Path.cwd(), version=commit_of(arguments.file))
    changes = register(wanted, dry_run=arguments.dry_run)
    print("\n".join(map(str, changes)))
    if arguments.dry_run and schedules:
        print("\n".join(["when it runs:", *map(str, schedules)]))
    return 0


def watch(arguments: argparse.Namespace) -> int:
    from flows.home import home
    from flows.prefect_settings import require_server, use_running_server

    pipeline = load(arguments)
    if arguments.here:
        use_running_server(home())
    else:
        require_server(home())
    from flows.watch import look
    from flows.watch_here import RunHere, make_here

    if arguments.here:
        here = RunHere(pipeline)
        found = look(pipeline, here, make_here)
        code, error = here.code, here.error
    else:
        from flows.deployed import DeployedRun

        found = look(pipeline, DeployedRun(pipeline.name), make_here)
        code, error = 0, ""
    print(found)
    if error:
        print(error, file=sys.stderr)
    return StageError.exit_code if found.action == "gave up" else code

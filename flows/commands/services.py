"""`forgeline up|down`: the Prefect server and worker of this machine."""

from __future__ import annotations

import argparse

from flows.commands.parsing import Commands, port, say
from infra.local_garbage import KEEP_DAYS


def add(commands: Commands) -> None:
    sub = commands.add("up", up, "start a Prefect server with its UI, and a worker, in the background")
    sub.add_argument("--port", type=port, help="port of the UI and API on 127.0.0.1; default: where it was, or 4200")
    sub.add_argument(
        "--postgres", metavar="URL",
        help="keep the server's data there, not in SQLite: postgresql://USER@HOST:PORT/DATABASE with the password in "
        "PGPASSWORD, or env:NAME, a variable that holds the whole URL",
    )  # fmt: skip
    sub.add_argument(
        "--prune", type=float, nargs="?", const=KEEP_DAYS, metavar="DAYS",
        help="first remove what runs left on this machine and nobody used for so long, as `gc --delete --local DAYS` "
        f"does (default: {KEEP_DAYS:.0f}); without this, it is only said",
    )  # fmt: skip
    sub.add_argument(
        "--no-standby", action="store_true",
        help="do not keep a process with all libraries loaded (some 600 MB), from which `forgeline run` begins sooner",
    )  # fmt: skip
    commands.add("down", down, "stop what `forgeline up` started")


def up(arguments: argparse.Namespace) -> int:
    from flows.garbage_here import garbage_here
    from flows.home import HOME, home
    from infra.folders import writable
    from infra.platform import prefect_server
    from infra.platform.postgres import read_url

    database = read_url(arguments.postgres) if arguments.postgres else None
    prune, place = arguments.prune is not None, writable(home(), HOME)
    for line in garbage_here((arguments.prune if prune else KEEP_DAYS) * 86400.0, delete=prune).lines():
        say(line + ("; removed" if prune else "; `forgeline up --prune` or `forgeline gc --delete` removes it"))
    print(prefect_server.up(place, arguments.port, database, standby=not arguments.no_standby))
    return 0


def down(arguments: argparse.Namespace) -> int:
    from flows.home import home
    from infra.platform import prefect_server

    print(prefect_server.down(home()))
    return 0

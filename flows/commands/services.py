"""`forgeline up|down`: the Prefect server and worker of this machine."""

from __future__ import annotations

import argparse

from flows.commands.parsing import Commands, port


def add(commands: Commands) -> None:
    sub = commands.add("up", up, "start a Prefect server with its UI, and a worker, in the background")
    sub.add_argument("--port", type=port, default=4200, help="port of the UI and API on 127.0.0.1")
    commands.add("down", down, "stop what `forgeline up` started")


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

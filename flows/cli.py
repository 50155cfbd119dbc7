"""The command line of Forgeline.

`forgeline validate|schema|plan|run|prepare|checkpoint|doctor|status|logs|cancel|compare|show|report|lineage|verify|gc|
promote|rollback|deploy|watch|up|down`

stdout carries the result (text, or JSON with `--json`), stderr the progress and the errors. Exit codes: 0 ok, 2 bad
config or usage, 3 a stage or a check failed, 4 the gate refused, 75 preempted and resumable, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from flows.commands import (
    checks,
    deployments,
    garbage,
    lineage,
    pipelines,
    releases,
    reports,
    runs,
    services,
    trainings,
    verification,
)
from flows.commands.parser import Parser, ShowVersion
from flows.commands.parsing import Commands, say
from infra.errors import ForgelineError
from infra.terminal import plain_stdout


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the `forgeline` script; returns the exit code."""
    arguments = _parser().parse_args(argv)
    if argv is None and (ended := _run_by_standby()) is not None:
        return ended
    if getattr(arguments, "verify", False):
        os.environ["FORGELINE_VERIFY_SOURCES"] = "1"  # for the processes of the run as well
    try:
        with plain_stdout():
            code: int = arguments.command(arguments)
        return code
    except ForgelineError as error:
        say(f"forgeline: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:  # a folder of this machine: it is reported before work is lost, where that is possible
        if not error.filename:
            raise
        say(f"forgeline: {error.filename}: {error.strerror}\n  Is it the right place, and may you write there?")
        return 2


def _run_by_standby() -> int | None:
    """The exit code of a command that the standby of `forgeline up` ran; None where it runs here."""
    if sys.argv[1:2] != ["run"]:
        return None
    from flows.home import home
    from infra.platform.prefect_server import prefect_home
    from infra.standby.client import run_there

    return run_there(prefect_home(home()), sys.argv[1:])


def _parser() -> Parser:
    parser = Parser(prog="forgeline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action=ShowVersion)
    commands = Commands(parser.add_subparsers(metavar="COMMAND"))
    pipelines.add(commands)
    trainings.add_checks(checks.add(commands))
    trainings.add(commands)
    runs.add(commands)
    reports.add(commands)
    lineage.add(commands)
    verification.add(commands)
    garbage.add(commands)
    releases.add(commands)
    deployments.add(commands)
    services.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())

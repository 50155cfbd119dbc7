"""The standby process of `forgeline up`, and the commands it runs: `python -P -m flows.standby FOLDER ADDED`.

FOLDER is where its socket lies. ADDED names the variables that `up` added to the user's environment, between commas.
What it imports is what `forgeline run` imports: Prefect, the stages, and all that a job needs (`infra/launch/warm.py`).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

from infra.launch import warm
from infra.launch.launcher import JobSpec

ROOT = Path(__file__).parents[1]
PACKAGES = tuple(ROOT / name for name in ("flows", "tasks", "infra"))
COMMANDS = ("run",)
"""Commands that begin sooner in a fork."""
MODULES = (
    "flows.cli",
    "flows.pipeline",
    "flows.run",
    "flows.search",
    "prefect.server.api.server",
    "tasks.plan.plan",
    "tasks.release.report.page",
)


def main(folder: str, added: str) -> int:
    from flows.run import TORCH_PRELOAD
    from infra.standby.circumstances import circumstances, code
    from infra.standby.server import Standby

    names = set(added.split(","))
    started_with = {name: value for name, value in os.environ.items() if name not in names}
    mine, before = circumstances(started_with), code(PACKAGES)
    os.environ.update(warm.ENVIRONMENT)
    for name in (*MODULES, JobSpec.entry.partition(":")[0]):
        importlib.import_module(name)
    warm.preload([*warm.PRELOAD["torch"], *TORCH_PRELOAD])
    standby = Standby(Path(folder), PACKAGES, mine, before, command)
    standby.serve()
    if standby.changed:
        inherited = {name: value for name, value in os.environ.items() if name in started_with or name in names}
        os.execve(sys.executable, [sys.executable, "-P", "-m", "flows.standby", folder, added], inherited)  # noqa: S606
    return 0


def command(arguments: list[str]) -> int:
    """Run a command in a fork, whose environment is the user's."""
    from prefect.context import refresh_global_settings_context

    from flows import cli
    from flows.home import home
    from flows.prefect_settings import use_running_server
    from flows.run import FORKED

    use_running_server(home())
    refresh_global_settings_context()
    FORKED.set()
    return cli.main(arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Where and with what a figure was measured. Says nothing that names the machine or its user."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.bench.workload import cores


def environment(packages: Sequence[str]) -> dict[str, str]:
    """date, commit, CPU, cores, Python and the packages that decide speed."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit(),
        "cpu": cpu_model(),
        "cores": str(cores()),
        "python": platform.python_version(),
        **{name: _version(name) for name in packages},
    }


def cpu_model() -> str:
    found = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return found[0] if found else platform.machine()


def commit() -> str:
    """The commit, with `+` where tracked files differ from it."""
    root = Path(__file__).parents[2]
    head, changed = (
        subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
        for words in (
            ["rev-parse", "--short", "HEAD"],
            ["status", "--porcelain", "-uno", "--", "infra", "tasks", "tests"],
        )
    )
    return (head or "unknown") + ("+" if changed else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"

"""When a forked copy of the standby is the same as a process started afresh: same code, same interpreter, same limits.

What is compared is read at the start of a process or when a library is imported, so a fork cannot change it later. All
else of the environment, the working folder and the terminal is handed over with each request.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

READ_AT_IMPORT = (
    "PYTHON", "VIRTUAL_ENV", "LD_", "LC_", "LANG", "TZ", "HOME", "XDG_", "TMPDIR", "MALLOC_", "JE_", "RUST", "OMP_",
    "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "TORCH", "PYTORCH", "DS_", "DEEPSPEED", "CUDA", "NVIDIA", "NCCL", "TRITON",
    "HF_", "HUGGINGFACE", "TRANSFORMERS", "TOKENIZERS", "ARROW", "FSSPEC_", "FORGELINE_HOME",
)  # fmt: skip
"""Beginnings of the names of variables that an interpreter or a library reads once. Prefect reads its own again."""
Code = dict[str, tuple[int, int]]
FLAGS = ("optimize", "utf8_mode", "dev_mode", "no_user_site", "no_site", "isolated", "ignore_environment")
NAMESPACES = ("mnt", "pid", "net", "user", "ipc", "uts")
LIMITS = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
PREFECT_FILES = {".env": "PREFECT_", "prefect.toml": "", "pyproject.toml": "[tool.prefect"}
"""Files of the working folder from which Prefect takes settings, and what says that they have any."""


def circumstances(environment: dict[str, str]) -> dict[str, Any]:
    """What this process has in common with all its forks, as plain JSON. environment: what it was started with."""
    return {
        "interpreter": [sys.executable, sys.prefix, sys.version, *(getattr(sys.flags, name) for name in FLAGS)],
        "code": [str(Path(__file__).parents[2]), sys.path[0 if sys.flags.safe_path else 1 :]],
        "environment": {name: environment[name] for name in sorted(environment) if name.startswith(READ_AT_IMPORT)},
        "user": [os.getresuid(), os.getresgid(), sorted(os.getgroups())],
        "namespaces": [os.readlink(f"/proc/self/ns/{name}") for name in NAMESPACES],  # noqa: PTH115 - not a path
        "limits": [resource.getrlimit(getattr(resource, name)) for name in LIMITS],
        "cores": sorted(os.sched_getaffinity(0)),
        "nice": os.nice(0),
    }


def settings_here() -> bool:
    """Whether the working folder has a file from which Prefect would take settings."""
    found = ((Path(name), mark) for name, mark in PREFECT_FILES.items())
    return any(path.is_file() and mark in path.read_text(encoding="utf-8", errors="replace") for path, mark in found)


def code(packages: Iterable[Path]) -> Code:
    """Time of the last change and size of all code in memory, of every file of our `packages`, and of folders of code.

    A folder changes when something is installed in it; a file of a package is found by its place, loaded or not.
    """
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    own = [str(path) for folder in packages for path in folder.rglob("*") if path.suffix in (".py", ".j2")]
    return {path: _stamp(path) for path in sorted({*filter(None, loaded), *own, *filter(None, sys.path)})}


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 - thousands of them
    except OSError:
        return (0, 0)
    return (found.st_mtime_ns, found.st_size)

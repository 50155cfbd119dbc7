"""Checks of this machine: Python and packages, devices, disk space, secrets."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from flows.checks.check import Check, Finding
from infra.cache import cache_folder

TORCH_SECONDS = 90.0
LITTLE, TOO_LITTLE = 10e9, 1e9
"""Bytes of free space from which down there is a warning, and a fault."""
SECRET = re.compile(r"(KEY|SECRET|TOKEN|PASSWORD|PASSWD|AUTH_STRING|CREDENTIALS|CONNECTION_URL)(_ID)?$")
TORCH = """
import json, torch
gpus = []
for index in range(torch.cuda.device_count()):
    assert torch.ones(2, device=f"cuda:{index}").sum().item() == 2
    found = torch.cuda.get_device_properties(index)
    gpus.append(f"{found.name} ({found.total_memory / 1e9:.0f} GB)")
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}))
"""


def checks(home: Path) -> list[Check]:
    return [
        Check("python", python),
        Check("packages", packages),
        Check("devices", devices, seconds=TORCH_SECONDS + 5.0),
        Check("disk", lambda: disk({"FORGELINE_HOME": home, "FORGELINE_CACHE": cache_folder()})),
        Check("secrets", lambda: secrets(os.environ)),
    ]


def python(version: str = sys.version.split()[0]) -> Finding:
    """This interpreter against what Forgeline asks for."""
    asked = metadata.metadata("forgeline")["Requires-Python"] or ""
    if SpecifierSet(asked).contains(version, prereleases=True):
        return Finding("ok", f"{version} ({asked} asked)")
    return Finding(
        "fault", f"{version}, but {asked} is asked", "Make the virtual environment again with another Python."
    )


def packages(requirements: list[str] | None = None) -> Finding:
    """What is installed against the ranges that work together. A package of an extra may be missing."""
    lines = metadata.requires("forgeline") if requirements is None else requirements
    wrong: dict[str, str] = {}
    must: list[str] = []
    count = 0
    for asked in map(Requirement, lines or []):
        always = asked.marker is None or asked.marker.evaluate({"extra": ""})
        try:
            version = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            if not always:
                continue
            version = "missing"
        count += 1
        if version == "missing" or not asked.specifier.contains(version, prereleases=True):
            wrong[f"{asked.name}{asked.specifier}"] = f"{asked.name} {version} ({asked.specifier} asked)"
            must += [asked.name] if always else []
    if not wrong:
        return Finding("ok", f"{count} within the ranges that work together")
    mend = f"pip install {' '.join(repr(name) for name in wrong)}; docs/versions.md says what breaks."
    return Finding("fault" if must else "warning", ", ".join(wrong.values()), mend)


def devices() -> Finding:
    """What torch sees, in a process of its own: a broken CUDA can end the one that imports it."""
    try:
        found = subprocess.run(
            [sys.executable, "-P", "-c", TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        said = f"importing torch took over {TORCH_SECONDS:.0f} s"
        return Finding("fault", said, "See whether this machine is overloaded, or its disk slow.")
    if found.returncode != 0:
        last = (found.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("fault", f"torch does not work: {last[:200]}", "Install torch again: docs/versions.md.")
    seen = json.loads(found.stdout.splitlines()[-1])
    if seen["gpus"]:
        return Finding("ok", f"{', '.join(seen['gpus'])}; torch {seen['version']}")
    cores, memory = len(os.sched_getaffinity(0)), psutil.virtual_memory().total / 1e9
    said = f"no GPU: {cores} cores, {memory:.0f} GB of memory; torch {seen['version']}"
    if shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists():
        why = "the driver may be too old for it" if seen["cuda"] else "this is its build for CPUs"
        return Finding(
            "warning", f"{said}; this machine has a GPU, which torch does not see: {why}", "docs/versions.md"
        )
    return Finding("ok", said)


def disk(folders: Mapping[str, Path]) -> Finding:
    """Free space where Forgeline writes, and that it may. folders: by the variable that names each."""
    parts, low, level = [], [], 0
    for variable, folder in folders.items():
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        parts.append(f"{free / 1e9:.1f} GB free in {folder} ({variable})")
        writable = there.is_dir() and os.access(there, os.W_OK)
        if not writable:
            parts[-1] += ", which is not writable"
        if not writable or free < LITTLE:
            low.append(variable)
            level = max(level, 2 if not writable or free < TOO_LITTLE else 1)
    if not low:
        return Finding("ok", "; ".join(parts))
    mend = f"Free space, or set {' or '.join(low)} to a folder on another disk."
    return Finding("fault" if level == 2 else "warning", "; ".join(parts), mend)


def secrets(environ: Mapping[str, str]) -> Finding:
    """Which secrets are set, by name. Their values are looked at no further than whether there is one."""
    found = sorted(name for name, value in environ.items() if value and SECRET.search(name))
    pair = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    if (there := pair & {*found}) and there != pair:
        said = f"{there.pop()} is set, {(pair - {*found}).pop()} is not"
        return Finding("fault", said, "Set both, or neither where the machine's role gives access.")
    return Finding("ok", f"set, by name: {', '.join(found)}" if found else "none is set")

"""Which process something belongs to, so that a number given to another process later is not taken for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """What distinguishes this process from any other, on any machine: plain JSON."""
    return {"machine": machine_id(), "pid": os.getpid(), "started": start_time(os.getpid())}


def machine_id() -> str | None:
    """Boot and pid namespace: where process ids mean the same. Two containers on one host share only the boot."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def start_time(pid: int) -> str | None:
    """Clock ticks after boot at which a living process started (proc(5), field 22); None if it is dead or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def is_here(holder: Mapping[str, Any]) -> bool:
    """Whether a process, as `this_process` described it, was one of this machine since its last boot."""
    machine = machine_id()
    return machine is not None and holder.get("machine") == machine


def is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether the holder certainly is a dead process of this machine."""
    if not is_here(holder) or holder.get("started") is None or not isinstance(holder.get("pid"), int):
        return False
    return start_time(int(holder["pid"])) != str(holder["started"])

"""Peak memory of this process, from the kernel's own count."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

MB = 1e6


def resident_mb() -> float:
    """Memory resident now, in MB (10^6 bytes); where the kernel does not say, the peak so far."""
    return _status("VmRSS") or peak_mb()


def reset_peak() -> None:
    """Start the peak again from what is resident now, where the kernel allows it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        # Not Linux, or not permitted: the peak then includes what came before, and reads too high.
        return


def peak_mb() -> float:
    """Most memory resident at once, in MB (10^6 bytes), since the start or `reset_peak`."""
    unit = 1 if sys.platform == "darwin" else 1024
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MB


def _status(field: str) -> float | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = next((line for line in lines if line.startswith(field + ":")), None)
    return int(found.split()[1]) * 1024 / MB if found else None

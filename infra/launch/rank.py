"""One rank of a job: what a forked process does around the job's own function, and how one sees that it lives.

The rank gets its place in the environment (as torchrun gives it), its threads, the job's log as output, and a thread
that touches `rank-<i>.beat` once a second: proof that the process lives and its interpreter runs, not that training
advances. The same thread ends the rank if the supervisor was killed and SIGTERM was not obeyed.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import selectors
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

import psutil

from infra.launch.process import die_with_parent

GRACE_SECONDS = 5.0
BEAT_SECONDS = 1.0


def sign_of_life(pid: int, beat: Path) -> object:
    """Something that changes as long as the process does anything."""
    try:
        times = psutil.Process(pid).cpu_times()
        return beat.stat().st_mtime_ns, times.user, times.system
    except (psutil.Error, OSError):
        return time.monotonic()  # it ends just now, or its folder was removed; neither is silence


def run_rank(spec: dict[str, Any], local_rank: int, port: int, log: int, life: int, supervisor: int) -> NoReturn:
    """Call the job's entry and exit with its code. `life`: a pipe that ends when the supervisor is gone."""
    rank = spec["first_rank"] + local_rank
    code = 1
    try:
        for name in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(name, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        die_with_parent(supervisor)
        for target in (1, 2):
            os.dup2(log, target)
        os.close(log)
        for stream in (sys.stdout, sys.stderr):
            # A line in one write, under PYTHONUNBUFFERED too: else the ranks' lines end up inside each other.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]
        faulthandler.enable()
        _prepare(spec, rank, local_rank, port)
        beat = Path(spec["folder"]) / f"rank-{rank}.beat"
        beat.touch()
        threading.Thread(target=_beat, args=(beat, life), name="beat", daemon=True).start()
        code = _call(spec["entry"], Path(spec["folder"]))
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        # Like multiprocessing's children: what the server registered to run at its exit is not run here.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _prepare(spec: dict[str, Any], rank: int, local_rank: int, port: int) -> None:
    threads = str(spec["threads"])
    os.environ.update(
        {
            **{f"{name}_NUM_THREADS": threads for name in ("OMP", "MKL", "OPENBLAS", "RAYON")},
            **spec["env"],
            "MASTER_ADDR": spec["master_addr"],
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(spec["world_size"]),
            "LOCAL_WORLD_SIZE": str(spec["ranks"]),
        }
    )
    # The interpreter is up already, so that it would not look at this variable again.
    sys.path[:0] = [part for part in spec["env"].get("PYTHONPATH", "").split(os.pathsep) if part]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(spec["threads"])
        # Where only one position has a gradient, the backward pass is full of denormals, on which x86 multiplies 20
        # times slower (measured). Threads made from here on inherit the setting.
        sys.modules["torch"].set_flush_denormal(True)
    if spec["threads"] > 1 and "numpy" in sys.modules:
        importlib.import_module("threadpoolctl").threadpool_limits(spec["threads"], user_api="blas")


def _call(entry: str, folder: Path) -> int:
    module, _, function = entry.partition(":")
    try:
        code = getattr(importlib.import_module(module), function)(folder)
    except SystemExit as stop:
        code = stop.code
    if code is None or isinstance(code, int):
        return (code or 0) & 0xFF
    sys.stderr.write(f"{code}\n")
    return 1


def _beat(path: Path, life: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(life, selectors.EVENT_READ)
        while not selector.select(BEAT_SECONDS):
            try:
                os.utime(path)
            except OSError:
                continue  # the folder was removed, or its disk is gone: the job itself will say so
    if sys.platform != "linux":
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)

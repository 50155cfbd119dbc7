"""The warm server: a small process that has imported the heavy modules and forks jobs, so that a job starts at once.

    python -P -m infra.launch.warm light|torch [more modules]        (stdin: one end of a socket pair)

`LocalLauncher` starts it and holds the other end. For every job it sends one byte with a socket attached; the server
forks a supervisor (`infra/launch/gang.py`) that reads the job from that socket, runs the ranks and answers there. The
server itself never reads a request, so a bad one cannot hurt the next.

Nothing here outlives the launcher. The socket pair is never named, so only the launcher can send jobs; when its end
closes, for whatever reason (`kill -9` included), every supervisor is asked to stop and the server ends. A parent-death
signal would not do: it fires when the launcher's *thread* that started the server ends.

The server stays single-threaded, because a fork copies locks in whatever state other threads left them. So libraries
that start threads when imported are set not to (`ENVIRONMENT`), and no torch operation runs before the fork.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import selectors
import signal
import socket
import sys
import time
import types
from pathlib import Path

import psutil

from infra.launch import gang
from infra.launch.process import adopt_orphans, kill_descendants, reap
from infra.launch.rank import GRACE_SECONDS

LIGHT = (
    "numpy",
    "pyarrow.parquet",
    "pyarrow.dataset",
    "tokenizers",
    "pydantic",
    "yaml",
    "fsspec",
    "rensa",
    "gigatoken",
    "awkward",  # which gigatoken imports with its first batch
)
# Beyond the obvious: modules that deepspeed.initialize and the first optimizer step would import lazily (torch 2.13,
# deepspeed 0.19: about 2.5 s of CPU, found by comparing sys.modules around each call).
TORCH = (
    "torch",
    "deepspeed",
    "transformers",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "deepspeed.ops.op_builder.all_ops",
    "distutils.ccompiler",
    "deepspeed.comm.mori",
    "deepspeed.module_inject.auto_ep_presets.registry",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.stage_1_and_2",
    "deepspeed.runtime.zero.stage3",
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "torch._dynamo.repro.after_aot",
    "torch._dynamo.repro.after_dynamo",
    "torch._inductor.compile_fx",
)
PRELOAD = {"light": LIGHT, "torch": (*LIGHT, *TORCH)}
ENVIRONMENT = {
    # Each would start a thread pool in the server; a rank sets its own number of threads after the fork.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    # Threads that spin at a barrier starve each other as soon as anything else runs: 12 times slower, measured.
    # libgomp reads this when it is loaded, so it must stand before the imports.
    "OMP_WAIT_POLICY": "PASSIVE",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
    # Ask the driver's library, not the CUDA runtime, which GPUs there are: the runtime does not survive a fork.
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
}
STOP_SECONDS = GRACE_SECONDS + 3.0


def preload(names: list[str]) -> None:
    """Import what jobs need. A module that fails is named in the log; the job that needs it raises the real error."""
    for name in names:
        started = time.perf_counter()
        try:
            importlib.import_module(name)
        except Exception as error:
            say(f"cannot preload {name}: {type(error).__name__}: {error}")
        if name == "torch":
            _choose_accelerator()
        if (seconds := time.perf_counter() - started) > 0.1:
            say(f"preloaded {name} in {seconds:.2f} s")
    gc.collect()
    gc.freeze()  # what is loaded stays: ranks need not walk it, so its memory pages stay shared


def _choose_accelerator() -> None:
    """Tell DeepSpeed, before it is imported, to use the CPU where there is no GPU: its own search guesses wrong."""
    torch = sys.modules.get("torch")
    if torch is not None and not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def say(text: str) -> None:
    """One line in the server's own log."""
    os.write(1, f"{text}\n".encode())


def num_threads() -> int:
    """Threads of this process, 1 where the system does not say."""
    try:
        return sum(1 for _ in Path("/proc/self/task").iterdir())
    except FileNotFoundError:
        return 1


class Server:
    """Forks a supervisor for each socket received over `control` until the other end closes."""

    def __init__(self, control: socket.socket) -> None:
        self.control = control
        self.supervisors: set[int] = set()
        self.strays_until: float | None = None
        self.stopping = False
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)

    def serve(self) -> None:
        """Returns when the launcher closed its end or SIGTERM came, with every process of every job gone."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.set_wakeup_fd(self._wake_write)
        with selectors.DefaultSelector() as selector:
            selector.register(self.control, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self.stopping:
                for key, _ in selector.select(None if self.strays_until is None else 0.2):
                    if key.fileobj is self.control:
                        self._receive()
                    else:
                        drain(self._wake_read)
                self._tidy()
        self._end_jobs()

    def _on_stop(self, signum: int, frame: types.FrameType | None) -> None:
        self.stopping = True

    def _receive(self) -> None:
        message, received, _, _ = socket.recv_fds(self.control, 1, 1)
        if not message:
            self.stopping = True
        for fd in received:
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                self._become_supervisor(fd, server)
            os.close(fd)
            self.supervisors.add(pid)

    def _become_supervisor(self, fd: int, server: int) -> None:
        signal.set_wakeup_fd(-1)
        for mine in (self._wake_read, self._wake_write):
            os.close(mine)
        self.control.close()
        gang.supervise(socket.socket(fileno=fd), server)

    def _tidy(self) -> None:
        """Reap supervisors; end what one that was killed left behind (such processes become children of the server)."""
        died_badly = False
        for pid, code in reap():
            if pid in self.supervisors:
                self.supervisors.discard(pid)
                died_badly |= code != 0
        if died_badly and self.strays_until is None:
            self.strays_until = time.monotonic() + GRACE_SECONDS
        if self.strays_until is not None:
            self._end_strays(time.monotonic() >= self.strays_until)

    def _end_strays(self, late: bool) -> None:
        """SIGTERM came to ranks when their supervisor died; kill them, and what they leave, when the grace is over."""
        strays = [child for child in psutil.Process().children() if child.pid not in self.supervisors]
        if not strays:
            self.strays_until = None
        for child in strays if late else []:
            for process in [*child.children(recursive=True), child]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def _end_jobs(self) -> None:
        for pid in self.supervisors:
            os.kill(pid, signal.SIGTERM)  # not reaped yet, so the id is still theirs
        deadline = time.monotonic() + STOP_SECONDS
        while self.supervisors and time.monotonic() < deadline:
            self.supervisors -= {pid for pid, _ in reap()}
            time.sleep(0.02)
        kill_descendants()


def drain(fd: int) -> None:
    """Empty a non-blocking pipe."""
    try:
        while os.read(fd, 4096):
            continue
    except BlockingIOError:
        return


def leave_when_closed(control: socket.socket) -> None:
    """End this process if the launcher is gone: it may die while the imports still run."""
    try:
        if not control.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
            os._exit(0)
    except BlockingIOError:
        return


def main(arguments: list[str]) -> None:
    """Preload `arguments[0]`'s modules and those named after it, then serve jobs that come over standard input."""
    control = socket.socket(fileno=os.dup(0))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda signum, frame: leave_when_closed(control))
    signal.setitimer(signal.ITIMER_REAL, 0.25, 0.25)
    preload([*PRELOAD[arguments[0]], *arguments[1:]])
    signal.setitimer(signal.ITIMER_REAL, 0)
    serve(control)


def serve(control: socket.socket) -> None:
    """Fork jobs that come over `control` until its other end closes. For a process with everything imported."""
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    say(f"ready, {num_threads()} thread(s)")
    control.sendall(b"R")
    Server(control).serve()


if __name__ == "__main__":
    main(sys.argv[1:])

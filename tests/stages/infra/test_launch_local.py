"""The local launcher with real processes: what a job gets, how it ends, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from infra.errors import StageError
from infra.launch import silence
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalJob, LocalLauncher

ENTRIES = '''
import json, os, signal, subprocess, sys, threading, time

def describe(folder):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "OMP_NUM_THREADS", "EXTRA")
    found = {name: os.environ.get(name) for name in names}
    found["started"] = time.time()
    found["torch"] = "torch" in sys.modules
    found["session"] = os.getsid(0)
    print("hello from rank", found["RANK"])
    (folder / f"seen-{found['RANK']}.json").write_text(json.dumps(found))
    return 0

def chatters(folder):
    for number in range(2000):
        print("rank", os.environ["RANK"], "line", number, file=sys.stderr if number % 2 else sys.stdout)

def torch_job(folder):
    import torch, deepspeed
    from deepspeed.accelerator import get_accelerator
    assert not torch.cuda.is_initialized()
    assert get_accelerator().device_name() == ("cuda" if torch.cuda.is_available() else "cpu")
    (folder / "torch.json").write_text(json.dumps({
        "started": time.time(), "threads": torch.get_num_threads(),
        "sum": float((torch.ones(300, 300) @ torch.ones(300, 300)).sum()),
    }))

def fails(folder):
    raise ValueError("no such column: labl")

def exits(folder):
    sys.exit(int((folder / "code").read_text()))

def says_why(folder):
    sys.exit("out of cheese")

def second_dies(folder):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)

def second_is_stopped(folder):
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)

def keeps_the_interpreter(folder):
    """One call that lets no other Python thread run, for longer than a rank may be silent."""
    sys.setswitchinterval(1e6)
    end = time.monotonic() + 12
    while time.monotonic() < end:
        pass

def one_is_preempted_first(folder):
    time.sleep(1.0 if os.environ["RANK"] == "0" else 0.0)
    if os.environ["RANK"] == "0":
        (folder / "committed").touch()
    return 75

def family(folder):
    """A rank with a child, and a grandchild in a session of its own that ignores SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN) if (folder / "stubborn").exists() else None
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    start = "subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)"
    middle = f"import subprocess, sys, time; {start}; time.sleep(60)"
    subprocess.Popen([sys.executable, "-c", middle, code])
    while "up" not in (folder / "log.txt").read_text():
        time.sleep(0.02)
    (folder / f"ready-{os.environ['RANK']}").touch()
    time.sleep(60)

def leaves_a_child(folder):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)

def saves_when_asked(folder):
    asked = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: asked.set())
    (folder / "ready-0").touch()
    while not asked.wait(0.05):
        pass
    (folder / "saved").touch()
    return 75
'''


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("entries")
    (folder / "launch_entries.py").write_text(ENTRIES)
    return folder


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path_factory.mktemp("servers"))
    launcher.prestart()
    yield launcher
    launcher.close()


@pytest.fixture
def spec(tmp_path: Path, entries: Path) -> Callable[..., JobSpec]:
    def make(function: str, **changes: object) -> JobSpec:
        env = {"PYTHONPATH": str(entries), "EXTRA": "given"}
        return JobSpec(name=function, folder=tmp_path, entry=f"launch_entries:{function}", env=env, **changes)  # type: ignore[arg-type]

    return make


def until(condition: Callable[[], bool], seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def descendants(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False  # it ended between the two questions


def gone(processes: list[psutil.Process], seconds: float = 15.0) -> bool:
    return until(lambda: not any(map(alive, processes)), seconds)


def say(text: str) -> None:
    """Evidence in the test's output: a machine under load makes times no matter for an assertion."""
    sys.stdout.write(text + "\n")


def seen(folder: Path, name: str) -> dict[str, object]:
    return dict(json.loads((folder / name).read_text()))


def test_each_rank_gets_its_place_and_the_log(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    asked = time.time()
    job = launcher.submit(spec("describe", ranks=2, threads=1))
    assert job.wait(60) == 0 and job.reason == ""
    ranks = [seen(tmp_path, f"seen-{rank}.json") for rank in (0, 1)]
    say(f"a light job started {ranks[0]['started'] - asked:.3f} s after submit")  # type: ignore[operator]
    assert [r["RANK"] for r in ranks] == [r["LOCAL_RANK"] for r in ranks] == ["0", "1"]
    assert {r["WORLD_SIZE"] for r in ranks} == {"2"} and {r["EXTRA"] for r in ranks} == {"given"}
    assert len({r["MASTER_PORT"] for r in ranks}) == 1 and {r["MASTER_ADDR"] for r in ranks} == {"127.0.0.1"}
    assert not ranks[0]["torch"], "a light job must not pay for torch"
    assert ranks[0]["session"] == ranks[1]["session"] != os.getsid(0)
    assert sorted(job.logs().splitlines()) == ["hello from rank 0", "hello from rank 1"]
    assert (tmp_path / "rank-1.beat").exists()


def test_the_lines_of_two_ranks_stay_whole(
    tmp_path: Path, spec: Callable[..., JobSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")
    launcher = LocalLauncher(tmp_path / "servers")
    try:
        job = launcher.submit(spec("chatters", ranks=2, threads=1))
        assert job.wait(60) == 0
    finally:
        launcher.close()
    lines = job.spec.log.read_text().splitlines()
    assert sorted(lines) == sorted(f"rank {rank} line {number}" for rank in (0, 1) for number in range(2000))


def test_a_torch_job_finds_torch_loaded_threads_set_and_works(tmp_path: Path, spec: Callable[..., JobSpec]) -> None:
    launcher = LocalLauncher(tmp_path / "servers")
    try:
        first = launcher.submit(spec("torch_job", threads=2, warm=True))
        assert first.wait(120) == 0, first.logs()
        asked = time.time()
        second = launcher.submit(spec("torch_job", threads=2, warm=True))
        assert second.wait(60) == 0, second.logs()
    finally:
        launcher.close()
    found = seen(tmp_path, "torch.json")
    say(f"a torch job started {found['started'] - asked:.3f} s after submit to a warm server")  # type: ignore[operator]
    assert found["threads"] == 2 and found["sum"] == 300.0**3
    log = (tmp_path / "servers" / "warm-torch.log").read_text()
    assert "ready, 1 thread(s)" in log, f"a library started threads before the fork:\n{log}"
    assert "cannot preload" not in log


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (75, 75), (3, 3)])
def test_the_return_code_is_the_exit_code(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path, code: int, expected: int
) -> None:
    (tmp_path / "code").write_text(str(code))
    assert launcher.submit(spec("exits")).wait(60) == expected


def test_an_exception_leaves_its_traceback_and_code_1(launcher: LocalLauncher, spec: Callable[..., JobSpec]) -> None:
    job = launcher.submit(spec("fails"))
    assert job.wait(60) == 1
    assert "in fails" in job.logs() and "ValueError: no such column: labl" in job.logs()
    assert job.reason == "rank 0 exited 1"
    said = launcher.submit(spec("says_why"))
    assert said.wait(60) == 1 and "out of cheese" in said.logs()
    assert launcher.submit(spec("nowhere")).wait(60) == 1


def test_one_rank_dying_ends_the_gang(launcher: LocalLauncher, spec: Callable[..., JobSpec]) -> None:
    job = launcher.submit(spec("second_dies", ranks=2))
    assert job.wait(30) == -signal.SIGKILL
    assert job.reason == "rank 1 was ended by SIGKILL" and "stopping the other ranks" in job.logs()


def test_a_rank_that_hangs_ends_the_job_and_one_that_is_busy_does_not(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    def run(function: str, ranks: int) -> tuple[int | None, str, float]:
        folder = tmp_path / function
        folder.mkdir()
        began = time.monotonic()
        job = launcher.submit(replace(spec(function, ranks=ranks), folder=folder))
        return job.wait(60), job.reason, time.monotonic() - began

    with ThreadPoolExecutor() as pool:
        hung, busy = pool.submit(run, "second_is_stopped", 2), pool.submit(run, "keeps_the_interpreter", 1)
    code, reason, seconds = hung.result()
    say(f"a stopped rank was noticed and the job gone after {seconds:.1f} s")
    assert code == -signal.SIGKILL and reason == "rank 1 gave no sign of life for 10 s"
    assert busy.result()[:2] == (0, "")


def test_a_preempted_rank_does_not_cut_off_the_one_that_commits(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    assert launcher.submit(spec("one_is_preempted_first", ranks=2)).wait(30) == 75
    assert (tmp_path / "committed").exists()


def test_cancel_lets_a_job_save_its_state(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    job = launcher.submit(spec("saves_when_asked"))
    assert until((tmp_path / "ready-0").exists)
    job.cancel()
    assert job.wait(0) == 75 and (tmp_path / "saved").exists()


@pytest.mark.parametrize("stubborn", [False, True])
def test_cancel_ends_children_in_sessions_of_their_own(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path, stubborn: bool
) -> None:
    if stubborn:
        (tmp_path / "stubborn").touch()
    job = launcher.submit(spec("family"))
    assert until((tmp_path / "ready-0").exists)
    job.wait(0.1)
    assert job.pid is not None
    processes = descendants(job.pid)
    assert len(processes) == 4
    job.cancel(grace=0.5)
    assert job.wait(0) == (-signal.SIGKILL if stubborn else -signal.SIGTERM)
    assert gone(processes, 0.5), "cancel() returns when all are gone"


def test_what_a_finished_job_leaves_running_is_ended(launcher: LocalLauncher, spec: Callable[..., JobSpec]) -> None:
    job = launcher.submit(spec("leaves_a_child"))
    assert job.wait(30) == 0
    server = next(iter(launcher._servers.values())).process.pid
    assert gone(psutil.Process(server).children(recursive=True), 2.0)


def test_a_killed_supervisor_takes_its_job_along(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    (tmp_path / "stubborn").touch()
    job = launcher.submit(spec("family"))
    assert until((tmp_path / "ready-0").exists)
    job.wait(0.1)
    assert job.pid is not None
    processes = descendants(job.pid)
    os.kill(job.pid, signal.SIGKILL)
    code = job.wait(10)
    assert code is not None and code < 0 and "supervisor was killed" in job.reason
    assert gone(processes, 8.0)


def test_many_threads_submit_and_wait(launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path) -> None:
    def one(index: int) -> int | None:
        folder = tmp_path / str(index)
        folder.mkdir()
        (folder / "code").write_text(str(index))
        made = spec("exits")
        return launcher.submit(JobSpec(made.name, folder, made.entry, env=made.env)).wait(60)

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(8))) == list(range(8))


def test_cancel_before_the_server_is_ready_returns_at_once_and_starts_nothing(
    spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "servers")
    job = launcher.submit(spec("describe", warm=True))
    started = time.monotonic()
    job.cancel()
    launcher.close()
    assert time.monotonic() - started < 2.0
    assert job.wait(0) == -signal.SIGTERM and not (tmp_path / "seen-0.json").exists()
    with pytest.raises(StageError, match="closed"):
        launcher.submit(spec("describe"))


def test_a_killed_server_fails_its_job_and_the_next_one_gets_another(
    spec: Callable[..., JobSpec], tmp_path: Path
) -> None:
    launcher = LocalLauncher(tmp_path / "servers")
    try:
        job: LocalJob = launcher.submit(spec("family"))
        assert until((tmp_path / "ready-0").exists)
        server = next(iter(launcher._servers.values())).process
        processes = descendants(server.pid)[1:]
        server.kill()
        code = job.wait(10)
        assert code is not None and code < 0 and "warm server died" in job.reason
        assert gone(processes, 2.0)
        assert launcher.submit(spec("describe")).wait(30) == 0
    finally:
        launcher.close()


@pytest.mark.parametrize("stopped", ["supervisor", "warm server"])
def test_whoever_waits_for_a_stopped_process_has_a_bound(
    spec: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: str
) -> None:
    """A rank that works beside it lives on; the job of one that was stopped fails as lost, and the next one runs."""
    monkeypatch.setattr(silence, "SILENCE_SECONDS", 2.0)
    launcher = LocalLauncher(tmp_path / "servers")
    try:
        assert launcher.submit(spec("describe")).wait(30) == 0
        if stopped == "supervisor":
            job = launcher.submit(spec("family"))
            assert until((tmp_path / "ready-0").exists)
            job.wait(0.1)
            assert job.pid is not None
            processes = descendants(job.pid)
            os.kill(job.pid, signal.SIGSTOP)
        else:
            processes = [psutil.Process(next(iter(launcher._servers.values())).process.pid)]
            processes[0].suspend()
            job = launcher.submit(spec("describe"))
        assert job.wait(30) == -signal.SIGKILL
        assert job.reason.startswith(f"the {stopped} gave no sign of life for")
        assert gone(processes, 8.0)
        assert launcher.submit(spec("describe")).wait(30) == 0
    finally:
        launcher.close()


def test_a_supervisor_that_only_waits_is_not_taken_for_a_stopped_one(
    launcher: LocalLauncher, spec: Callable[..., JobSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks that take long to stop: the supervisor waits for its deadline, and wakes meanwhile."""
    monkeypatch.setattr(silence, "SILENCE_SECONDS", 2.5)
    (tmp_path / "stubborn").touch()
    job = launcher.submit(spec("family"))
    assert until((tmp_path / "ready-0").exists)
    job.cancel(grace=5.0)
    assert "no sign of life" not in job.reason and "asked to stop" in job.reason


ORCHESTRATOR = """
import sys, time
from pathlib import Path
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
folder, entries = Path(sys.argv[1]), sys.argv[2]
launcher = LocalLauncher(folder / "servers")
jobs = [launcher.submit(JobSpec("family", folder, "launch_entries:family", 2, env={"PYTHONPATH": entries}))]
launcher.prestart(warm=True)
time.sleep(60)
"""


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_killed_orchestrator_leaves_nothing_behind(tmp_path: Path, entries: Path, stubborn: bool) -> None:
    if stubborn:
        (tmp_path / "stubborn").touch()
    script = textwrap.dedent(ORCHESTRATOR)
    orchestrator = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(entries)])
    try:
        assert until(lambda: (tmp_path / "ready-0").exists() and (tmp_path / "ready-1").exists(), 30)
        # Two servers, a supervisor, two ranks with two generations each; the warm server may be the last to start.
        assert until(lambda: len(descendants(orchestrator.pid)) >= 10)
        processes = descendants(orchestrator.pid)[1:]
    finally:
        orchestrator.kill()
        orchestrator.wait()
    started = time.monotonic()
    assert gone(processes, 10.0)
    say(f"all gone {time.monotonic() - started:.2f} s after kill -9")

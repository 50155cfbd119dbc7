"""Feeds metrics files to Weights & Biases from a process of its own, at the lowest priority.

    replay = WandbReplay(settings, project="stdlib-code", group=run, folder=run_folder)  # orchestrator
    replay.follow(metrics_path, name="base", job_type="pretrain", config=params)
    replay.end(metrics_path, exit_code=0)
    warnings = replay.close()

The orchestrator appends what to follow to `wandb.jsonl` in the folder, which cannot block; the process tails that file
and the metrics files it names. It starts with the first `follow`, imports wandb when the first metric is logged, and
finishes when its standard input closes, so it never outlives the orchestrator by more than a few seconds. Should it
die, nothing is lost: `python -m infra.wandb_replay FOLDER < /dev/null` does it all again from the files.

Offline runs end up in `FOLDER/wandb/offline-run-*`; `wandb sync` uploads them. Steps are the custom axis `train/step`,
so that a resumed job may log a step twice. The process gets no arguments but the folder and W&B is set to collect
neither the command line nor the machine nor the code.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.tail import Tail
from infra.tracking import Row, Tracker, TrackingSettings, parse_line, permitted

QUEUE, LOG = "wandb.jsonl", "wandb.log"
POLL_SECONDS = 0.5
ORPHAN_SECONDS = 5.0
FINISH_SECONDS = 5
PROBE_SECONDS = 5.0


class WandbReplay:
    """The orchestrator's side. Does nothing at all when tracking is disabled. Thread-safe."""

    def __init__(self, settings: TrackingSettings, *, project: str, group: str, folder: Path) -> None:
        self._mode = settings.resolved_mode(os.environ)
        self._run = {"project": settings.project or project, "entity": settings.entity, "group": group}
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def follow(self, metrics: Path, *, name: str, job_type: str, config: Mapping[str, Any]) -> None:
        """Show this metrics file, which need not exist yet, as the W&B run `name`."""
        entry = {"follow": str(metrics), "mode": self._mode, **self._run, "name": name, "job_type": job_type}
        self._tell({**entry, "config": dict(config)})

    def end(self, metrics: Path, exit_code: int = 0) -> None:
        """The job that wrote this file is over."""
        self._tell({"end": str(metrics), "exit_code": exit_code})

    def close(self, timeout: float = 20.0) -> list[str]:
        """Wait until all is handed over, at most `timeout` seconds; returns warnings for the user."""
        process, log = self._process, self._folder / LOG
        if process is None:
            return []
        self._tell({"drain": timeout})
        assert process.stdin is not None
        process.stdin.close()
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = process.wait()
        with self._lock:
            self._process = None
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        warnings = [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]
        if code != 0:
            warnings.append(f"W&B did not get all metrics (see {log}); they are complete in the run's own files.")
        return warnings

    def _tell(self, entry: dict[str, Any]) -> None:
        if self._mode == "disabled":
            return
        with self._lock:
            with (self._folder / QUEUE).open("a", encoding="utf-8") as queue:
                queue.write(json.dumps(entry) + "\n")
            if self._process is None and "follow" in entry:
                with (self._folder / LOG).open("ab") as log:
                    self._process = subprocess.Popen(
                        [sys.executable, "-P", "-m", "infra.wandb_replay", str(self._folder)],
                        stdin=subprocess.PIPE,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )


class WandbTracker:
    """One W&B run. `online` falls back to an offline run, with one warning, when W&B does not answer."""

    _online_failed = False

    def __init__(self, entry: Mapping[str, Any], folder: Path) -> None:
        mode: Any = permitted(entry["mode"], os.environ)
        # W&B reads these too, and refuses to be imported with values that it does not know.
        os.environ["WANDB_MODE"] = mode
        os.environ.pop("WANDB_DISABLED", None)
        import wandb

        if mode == "online" and (WandbTracker._online_failed or not reachable(wandb.setup().settings.base_url)):
            mode = self._fall_back("it cannot be reached")
        try:
            self._run = _init(wandb, entry, folder, mode)
        except wandb.errors.Error as error:
            if mode != "online":
                raise
            self._run = _init(wandb, entry, folder, self._fall_back(str(error).splitlines()[0]))
        self._run.define_metric("train/step", hidden=True)
        self._run.define_metric("*", step_metric="train/step")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"train/step": step, **values})

    def summary(self, values: Mapping[str, float]) -> None:
        self._run.summary.update(dict(values))

    def close(self, exit_code: int = 0) -> None:
        self._run.finish(exit_code=exit_code)

    @staticmethod
    def _fall_back(why: str) -> str:
        if not WandbTracker._online_failed:
            WandbTracker._online_failed = True
            _say(f"warning: W&B is not used online ({why}); metrics go to an offline run, upload it with `wandb sync`.")
        return "offline"


def _init(wandb: Any, entry: Mapping[str, Any], folder: Path, mode: str) -> Any:
    settings = wandb.Settings(
        console="off",
        silent=True,
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        x_service_wait=300.0,
        init_timeout=60.0,
        finish_timeout=FINISH_SECONDS,
        finish_timeout_raises=False,
    )
    return wandb.init(
        project=entry["project"],
        entity=entry["entity"],
        group=entry["group"],
        job_type=entry["job_type"],
        name=entry["name"],
        id=re.sub(r"[^A-Za-z0-9._-]", "-", f"{entry['group']}-{entry['name']}")[-120:],
        config=entry["config"],
        dir=folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
        reinit="create_new",
        settings=settings,
    )


def reachable(url: str) -> bool:
    """Whether anything answers there. Tried first because wandb itself retries for a minute."""
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=PROBE_SECONDS):  # noqa: S310 - the user's own setting
            return True
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False


@dataclass
class _Followed:
    tail: Tail
    entry: dict[str, Any]
    tracker: WandbTracker | None = None
    exit_code: int | None = None

    def pump(self, folder: Path) -> int:
        """Hand over what is new; returns the number of lines."""
        lines = self.tail.lines()
        for line in lines:
            if self.tracker is None:
                self.tracker = WandbTracker(self.entry, folder)
            _hand_over(self.tracker, line)
        return len(lines)


def _hand_over(tracker: Tracker, line: bytes) -> None:
    try:
        parsed = parse_line(line)
    except ValueError as error:
        _say(f"skipped a metrics line: {error}")
        return
    if isinstance(parsed, Row):
        tracker.log(parsed.step, parsed.values)
    else:
        tracker.summary(parsed)


def replay(folder: Path) -> None:
    """Follow what `wandb.jsonl` in `folder` names until standard input ends, then hand over the rest and return."""
    queue, followed, seconds = Tail(folder / QUEUE), dict[str, _Followed](), ORPHAN_SECONDS
    last_round = False
    while True:
        # The input is looked at first: all that was written before it ended is then read in the last round.
        closed = bool(select.select([0], [], [], 0 if last_round else POLL_SECONDS)[0]) and not os.read(0, 1)
        for entry in map(json.loads, queue.lines()):
            if "follow" in entry:
                followed[entry["follow"]] = _Followed(Tail(Path(entry["follow"])), entry)
            elif "end" in entry and entry["end"] in followed:
                followed[entry["end"]].exit_code = entry["exit_code"]
            else:
                seconds = entry.get("drain", seconds)
        if closed and not last_round and stat.S_ISFIFO(os.fstat(0).st_mode):  # started by an orchestrator
            _end_after(seconds)
        handed = 0
        for path, one in list(followed.items()):
            handed += (lines := one.pump(folder))
            if one.tracker is not None and lines == 0 and one.exit_code is not None:
                one.tracker.close(one.exit_code)
                del followed[path]
        if last_round and not handed:
            break
        last_round = closed
    for one in followed.values():
        if one.tracker is not None:
            one.tracker.close(one.exit_code if one.exit_code is not None else 1)


def _end_after(seconds: float) -> None:
    """Whatever W&B does, this process and its service are gone after `seconds`."""
    timer = threading.Timer(seconds, lambda: os.killpg(os.getpgid(0), signal.SIGKILL))
    timer.daemon = True
    timer.start()


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())


if __name__ == "__main__":
    os.nice(19)
    replay(Path(sys.argv[1]))

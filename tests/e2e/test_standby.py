"""The standby of `forgeline up`: a run forked from it is the run it would have been, and never of an old version."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.standby.server import READY

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
PIPELINE = """name: standby
stages:
  texts: {{dataset: {{sources: [{{files: "texts.jsonl", format: jsonl}}], split: {{by: row, validation: 0.2}}}}}}
  words: {{tokenizer: {{data: texts, vocab_size: 300}}}}
  tokens: {{pack: {{data: texts, tokenizer: words, context: 32}}}}
  base:
    pretrain:
      data: tokens
      objective: causal_lm
      model: {{type: llama, hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}}
      max_steps: {steps}
      global_batch_size: 8
      learning_rate: {rate}
"""


class Place:
    """A folder with a pipeline, a home whose standby is ready, and a copy of our code that may change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.code, self.home = folder, folder / "code", folder / "home"
        for name in ("flows", "tasks", "infra"):
            shutil.copytree(ROOT / name, self.code / name, ignore=shutil.ignore_patterns("__pycache__"))
        kept = {n: v for n, v in os.environ.items() if not n.startswith(("PREFECT_", "FORGELINE_", "WANDB_"))}
        own = {
            "FORGELINE_HOME": str(self.home),
            "FORGELINE_STORE": str(folder / "store"),
            "FORGELINE_CACHE": str(folder / "cache"),
            "WANDB_MODE": "disabled",
            "PYTHONPATH": str(self.code),
        }
        self.environment = kept | own
        rows = "".join(f'{{"text": "text number {i} of some words"}}\n' for i in range(200))
        (folder / "texts.jsonl").write_text(rows, encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment | more, capture_output=True, text=True
        )

    def pipeline(self, rate: float, steps: int = 2) -> None:
        (self.folder / "p.yaml").write_text(PIPELINE.format(rate=rate, steps=steps), encoding="utf-8")

    def digests(self) -> dict[str, str]:
        manifests = (self.folder / "store/artifacts").glob("*/*/manifest.json")
        return {str(path): json.loads(path.read_text(encoding="utf-8"))["digest"] for path in manifests}

    @property
    def log(self) -> str:
        return (self.home / "prefect/standby.log").read_text(encoding="utf-8")

    def wait_until_ready(self) -> int:
        """Its process id."""
        ready = self.home / "prefect" / READY
        wait_for(ready.exists)
        return int(json.loads(ready.read_text(encoding="utf-8"))["pid"])


def wait_for(condition: Callable[[], object], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def served(log: str) -> int:
    return log.count("ready, 1 thread(s)")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    found = Place(tmp_path_factory.mktemp("standby"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    began = found.run("up", "--port", str(port))
    assert began.returncode == 0, began.stderr
    try:
        found.wait_until_ready()
        yield found
    finally:
        ended = found.run("down")
    assert "standby" in ended.stdout


def test_a_run_is_forked_and_is_the_run_it_would_have_been(place: Place) -> None:
    place.pipeline(0.001)
    here = place.run("run", "p.yaml", "--json", "--no-report", OMP_NUM_THREADS="1")
    assert "other environment than this process" in place.log and not served(place.log)
    again = place.run("run", "p.yaml", "--json", "--no-report")
    assert (here.returncode, again.returncode) == (0, 0), here.stderr + again.stderr
    assert served(place.log) == 1
    actions = [stage["action"] for stage in json.loads(again.stdout)["stages"]]
    assert actions == ["reuse"] * 4, "the same keys"
    first = place.digests()
    shutil.rmtree(place.folder / "store")
    again = place.run("run", "p.yaml", "--json", "--no-report")
    assert again.returncode == 0 and len(first) >= 4
    assert place.digests() == first, "the same bytes"
    assert served(place.log) == 2


def test_exit_codes_and_errors_are_the_commands_own(place: Place) -> None:
    (place.folder / "bad.yaml").write_text("name: bad\nstages: {a: {nothing: {}}}\n", encoding="utf-8")
    before = served(place.log)
    bad = place.run("run", "bad.yaml")
    assert bad.returncode == 2 and "nothing" in bad.stderr and not bad.stdout
    assert served(place.log) == before + 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_signal_ends_the_run(place: Place, number: signal.Signals) -> None:
    """Also that which only the client gets: whoever waits is gone."""
    place.pipeline(0.001 * (1 + number), steps=100_000)
    process = subprocess.Popen(
        place.command("run", "p.yaml", "--no-report"), cwd=place.folder, env=place.environment, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if b"base (pretrain): running" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=60)
    code = process.returncode
    assert code == (-number if number == signal.SIGKILL else 130)
    runs = sorted((place.home / "runs").iterdir())
    owner = json.loads((runs[-1] / "process.json").read_text(encoding="utf-8"))["pid"]
    wait_for(lambda: not psutil.pid_exists(owner) or psutil.Process(owner).status() == psutil.STATUS_ZOMBIE, 60)
    listed = place.run("status")
    assert "interrupted" in listed.stdout


def test_changed_code_is_never_the_old_code(place: Place) -> None:
    pid = place.wait_until_ready()
    before = served(place.log)
    file = place.code / "flows/home.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("Where Forgeline keeps", "Where it keeps"), encoding="utf-8"
    )
    place.pipeline(0.001)
    ran = place.run("run", "p.yaml", "--json", "--no-report")
    assert ran.returncode == 0 and served(place.log) == before, "it ran by itself"
    assert "the code has changed" in place.log
    wait_for(lambda: (place.home / "prefect" / READY).exists())
    assert place.wait_until_ready() == pid, "it has started again, and is the service that `down` knows"
    (place.code / "tasks/objectives/text/added.py").write_text("", encoding="utf-8")
    assert place.run("run", "p.yaml", "--no-report").returncode in (0, 2, 3)
    assert place.log.count("the code has changed") == 2, "a file that was added is code as well"

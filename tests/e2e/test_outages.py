"""A whole run on S3 whose server is away again and again, in every way a server can be: it ends well, with the bytes of
an undisturbed run.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.open_store import open_store

pytestmark = [pytest.mark.e2e, pytest.mark.soak]
PIPELINE = """
name: away
stages:
  rows: {dataset: {sources: [{files: "data/*.jsonl", format: jsonl}], split: {by: row, validation: 0.1, test: 0}}}
  words: {tokenizer: {data: rows, vocab_size: 300}}
  tokens: {pack: {data: rows, tokenizer: words, context: 16}}
  more: {dataset: {sources: [{stage: rows}], split: {by: row, validation: 0.1, test: 0}}}
"""
UP, DOWN = (0.3, 3.0), (1.0, 6.0)
"""Seconds that the server answers, and that it does not, drawn again each time."""


@pytest.fixture
def faulty(seaweed: Any, load: Any) -> Iterator[Any]:
    server = load("e2e/faulty_s3.py").FaultyS3(seaweed.port)
    yield server
    server.stop()


def run(folder: Path, store: str, environment: dict[str, str]) -> dict[str, str]:
    """Digest of each stage's artifact after a `forgeline run`."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "flows.cli", "run", "p.yaml", "--store", store, "--json", "--no-report"],
        cwd=folder, env=environment | {"FORGELINE_HOME": str(folder / store.rpartition("/")[2])},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    return {stage["name"]: stage["artifact"]["digest"] for stage in json.loads(done.stdout)["stages"]}


def faults(faulty: Any, module: Any) -> dict[str, tuple[Callable[[], None], Callable[[], None]]]:
    """How a server goes away, and comes back."""
    busy, back = module.ServerFault(503, "SlowDown"), threading.Event()

    def answer(how: Callable[[Any], Any]) -> Callable[[], None]:
        def begin() -> None:
            back.clear()
            faulty.intercept = how

        return begin

    def healthy() -> None:
        faulty.intercept = lambda request: None
        back.set()

    def hang(request: Any) -> None:
        back.wait(30)

    def lose(request: Any) -> Any:
        faulty.forward(request)
        return busy

    return {
        "stopped": (faulty.stop, faulty.start),
        "busy": (answer(lambda request: busy), healthy),
        "hanging": (answer(hang), healthy),
        "answers lost": (answer(lose), healthy),
    }


@pytest.mark.parametrize("kind", ["stopped", "busy", "hanging", "answers lost"])
def test_a_run_outlives_a_server_that_is_away_again_and_again(
    seaweed: Any, faulty: Any, load: Any, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "data").mkdir()
    rows = [{"text": f"row {i} of the data, number {i * 7919 % 1000}"} for i in range(300)]
    (tmp_path / "data/a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "p.yaml").write_text(PIPELINE)
    environment = {**os.environ, **seaweed.env, "FORGELINE_CACHE": str(tmp_path / "cache")}
    undisturbed = run(tmp_path, seaweed.url(), environment)

    leave, come_back = faults(faulty, load("e2e/faulty_s3.py"))[kind]
    over, draw, url = threading.Event(), random.Random(kind), seaweed.url()

    def disturb() -> None:
        # The command is refused at once where the store is away when it begins.
        while not open_store(url).list("runs"):
            if over.wait(0.2):
                return
        while not over.wait(draw.uniform(*UP)):
            leave()
            over.wait(draw.uniform(*DOWN))
            come_back()

    with pytest.MonkeyPatch.context() as patch:
        for name, value in seaweed.env.items():
            patch.setenv(name, value)
        thread = threading.Thread(target=disturb)
        thread.start()
        through = {**environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{faulty.port}"}
        try:
            assert run(tmp_path, url, through) == undisturbed
        finally:
            over.set()
            thread.join()

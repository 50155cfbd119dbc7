"""Marked secrets go into a pipeline's environment, and into none of the bytes that come out: a canary.

A pipeline is deployed and run by a worker of a server that asks for a password, on S3, with a W&B that refuses its key.
Then things go wrong. The store, the home folder with Prefect's database and all logs, what W&B left, everything printed
and the arguments of every process are searched for the secrets, also url-encoded and as base64.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import yaml

from infra.platform import prefect_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
DROPPED = ("student", "lean", "onnx", "int8")
"""Stages of the tiny pipeline that are left out: they do nothing that others do not, and take time."""


class House:
    """A folder, a store, a server and a worker, with secrets in their environment."""

    def __init__(self, folder: Path, seaweed: Any, canary: Any, wandb: Any) -> None:
        self.folder, self.home, self.url = folder, folder / "home", seaweed.url("canary")
        names = ("HF_TOKEN", "PGPASSWORD", "FORGELINE_CANARY", "PREFECT_API_AUTH_STRING", "wrong", "in-url")
        self.secrets = {name: canary.mark(name) for name in names}
        self.secrets["WANDB_API_KEY"] = "c0ffee" + os.urandom(17).hex()
        self.secrets["AWS_SECRET_ACCESS_KEY"] = seaweed.env["AWS_SECRET_ACCESS_KEY"]
        self.search = canary.Search(self.secrets)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        login = f"admin:{self.secrets['PREFECT_API_AUTH_STRING']}"
        clean = ("PREFECT_", "FORGELINE_", "WANDB_", "AWS_", "XDG_", "HF_")
        for name in ("tmp", "user", "work"):
            (folder / name).mkdir()
        self.env = {
            **{name: value for name, value in os.environ.items() if not name.startswith(clean)},
            **seaweed.env,
            **{name: self.secrets[name] for name in ("HF_TOKEN", "PGPASSWORD", "FORGELINE_CANARY", "WANDB_API_KEY")},
            "PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login, "WANDB_BASE_URL": wandb.url,
            "FORGELINE_STORE": self.url, "FORGELINE_HOME": str(self.home), "FORGELINE_CACHE": str(folder / "cache"),
            "HOME": str(folder / "user"), "TMPDIR": str(folder / "tmp"), "PYTHONPATH": str(ROOT),
            "PREFECT_WORKER_QUERY_SECONDS": "1",
        }  # fmt: skip

    def forgeline(self, *arguments: str, code: int = 0, **environment: str) -> str:
        """What the command line printed, all of which is searched."""
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *arguments],
            cwd=self.folder / "work", env={**self.env, **environment}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        said = done.stdout + done.stderr
        self.search.look(f"output of {arguments[0]}", said.encode())
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{said[-5000:]}"
        return said

    def api(self, path: str, body: Any = None) -> Any:
        """An answer of the Prefect server, which is searched too."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/api{path}")
        asked.data = None if body is None else json.dumps(body).encode()
        asked.add_header("Content-Type", "application/json")
        login = base64.b64encode(self.env["PREFECT_API_AUTH_STRING"].encode()).decode()
        asked.add_header("Authorization", f"Basic {login}")
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                data = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}") from error
        self.search.look(f"Prefect {path}", data)
        return json.loads(data)


@pytest.fixture(scope="module")
def canary(load: Any) -> Any:
    return load("e2e/canary.py")


@pytest.fixture(scope="module")
def house(load: Any, canary: Any, seaweed: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    wandb = canary.RefusingWandb()
    house = House(tmp_path_factory.mktemp("canary"), seaweed, canary, wandb)
    house.wandb = wandb
    file = load("e2e/chain.py").write_project(house.folder / "work")
    pipeline = yaml.safe_load(file.read_text())
    for name in DROPPED:
        del pipeline["stages"][name]
    pipeline["stages"]["scores"]["evaluate"] |= {"models": ["teacher"]}
    gate = {"scores": "scores", "candidate": "teacher", "require": [{"metric": "accuracy", "min": 0.0}]}
    pipeline["stages"] |= {"gate": {"gate": gate}, "release": {"promote": {"gate": "gate", "ref": "tiny/production"}}}
    pipeline |= {"store": "${env:FORGELINE_STORE}", "tracking": {"mode": "auto"}}
    pipeline["deploy"] = {"parameters": {"steps": "stages.base.max_steps"}, "watch": {"every": "1h"}}
    pipeline["stages"]["base"]["pretrain"]["max_steps"] = 10
    file.write_text(yaml.safe_dump(pipeline))
    watch = canary.ArgumentWatch(house.search)
    try:
        house.forgeline("up", "--port", house.port)
        yield house
    finally:
        watch.close()
        prefect_server.down(house.home)
        wandb.close()


def nothing_leaked(house: House, seaweed: Any) -> None:
    house.search.look_into(house.folder)
    assert house.search.look_at_store(seaweed, house.url) > 10
    assert house.search.found == set()


@pytest.mark.parametrize("place", range(5))
def test_the_search_finds_what_is_there(canary: Any, place: int) -> None:
    secret = canary.mark("planted")
    search = canary.Search({"planted": secret, "other": canary.mark("other")})
    search.look("here", list(canary.texts(secret))[place])
    assert search.found == {("planted", "here")}


def test_a_deployed_pipeline_tells_no_secret(house: House, seaweed: Any) -> None:
    house.forgeline("deploy", "tiny.yaml")
    deployment = house.api("/deployments/name/tiny/run")
    run = house.api(f"/deployments/{deployment['id']}/create_flow_run", {})
    while (state := house.api(f"/flow_runs/{run['id']}")["state"])["type"] not in ("COMPLETED", "FAILED", "CRASHED"):
        time.sleep(1.0)
    log = (prefect_server.prefect_home(house.home) / "worker.log").read_text()
    assert state["type"] == "COMPLETED", f"{state}\n{log[-6000:]}"
    assert house.wandb.asked, "the key was shown to W&B, so it was in use"
    for path in ("/logs/filter", "/artifacts/filter", "/flow_runs/filter", "/task_runs/filter", "/events/filter"):
        house.api(path, {})
    house.api("/admin/settings")
    for command in (["plan", "tiny.yaml"], ["status"], ["show", "tiny/production", "--json"], ["report"]):
        house.forgeline(*command)
    findings = {check["name"]: check for check in json.loads(house.forgeline("doctor", "--json"))["checks"]}
    assert "WANDB_API_KEY" in findings["secrets"]["said"] and "1 at work" in findings["prefect workers"]["said"]
    nothing_leaked(house, seaweed)
    databases = list(house.home.rglob("prefect.db"))
    assert databases and list(house.home.rglob("run-*.wandb")) and house.search.bytes > 1_000_000


def test_what_goes_wrong_tells_no_secret(house: House, seaweed: Any) -> None:
    secret = house.secrets["wrong"]
    failing = ["--quiet", "--set", "stages.base.learning_rate=1e9"]
    said = house.forgeline("run", "tiny.yaml", *failing, code=3, WANDB_BASE_URL="http://127.0.0.1:9")
    assert "the gradient norm became nan" in said and "W&B is not used online" in said
    said = house.forgeline("doctor", code=3, AWS_SECRET_ACCESS_KEY=secret, PREFECT_API_AUTH_STRING=f"admin:{secret}")
    assert "refused the credentials" in said and "Set PREFECT_API_AUTH_STRING" in said
    elsewhere = f"http://user:{quote(house.secrets['in-url'], safe='')}@127.0.0.1:9"
    urls = dict.fromkeys(("AWS_ENDPOINT_URL", "PREFECT_API_URL", "WANDB_BASE_URL"), elsewhere)
    said = house.forgeline("doctor", code=3, **urls)
    assert said.count("http://***@127.0.0.1:9") >= 2
    file = house.folder / "work" / "keyed.yaml"
    text = (house.folder / "work" / "tiny.yaml").read_text()
    for store in ("s3://AKIA:{}@bucket/prefix", "https://user:{}@host/bucket"):
        file.write_text(text.replace("${env:FORGELINE_STORE}", store.format(quote(secret, safe=""))))
        assert "no credentials in a file" in house.forgeline("validate", "keyed.yaml", code=2)
    file.write_text(text.replace("mode: auto", "mode: ${env:FORGELINE_CANARY}"))
    assert "got '${env:FORGELINE_CANARY}'" in house.forgeline("plan", "keyed.yaml", code=2)
    file.unlink()
    nothing_leaked(house, seaweed)

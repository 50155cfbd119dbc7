"""The files that stand the platform up on more than one machine: as far as they can be judged without one."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from flows.checks.machine import SECRET, SpecifierSet

ROOT = Path(__file__).parents[3]
PLATFORM = ROOT / "infra" / "platform"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINNED = re.compile(r"^[\w./-]+:\d+\.\d+(\.\d+)?(-\w+)*$")
EXAMPLE = dict(line.split("=", 1) for line in (PLATFORM / "env.example").read_text().splitlines() if line[0] != "#")
MANIFESTS = sorted(path for path in (PLATFORM / "kubernetes").glob("*.yaml") if path.stem != "kustomization")


def pinned(image: str) -> bool:
    ours = image.startswith("forgeline:")
    return image == f"forgeline:{PROJECT['version']}" if ours else bool(PINNED.match(image))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((PLATFORM / "compose.yaml").read_text())["services"]
    return found


def test_compose_gives_away_no_secret_and_no_port(services: dict[str, Any]) -> None:
    secret = [(n, v) for s in services.values() for n, v in s["environment"].items() if SECRET.search(n)]
    assert len(secret) >= 8
    for name, value in secret:
        variable = re.fullmatch(r"\$\{(\w+)(:\?[^}]*|:-)\}", value)
        assert variable, f"{name} has to come from the environment, without a value to fall back to"
        assert EXAMPLE[variable[1]] == "", f"{variable[1]} is to be filled in by the user"
    assert all(port.startswith("127.0.0.1:") for s in services.values() for port in s.get("ports", []))
    ignored = subprocess.run(["git", "check-ignore", "-q", str(PLATFORM / ".env")], cwd=ROOT)
    assert ignored.returncode == 0


def test_compose_services_are_pinned_watched_and_restarted(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert pinned(service["image"]), name
        assert service["restart"] == "unless-stopped" and service["healthcheck"]["test"], name
        assert set(service.get("depends_on", {})) <= set(services)
        if "build" in service:
            context = (PLATFORM / service["build"]["context"]).resolve()
            assert context == ROOT and (context / service["build"]["dockerfile"]).is_file()
    assert services["worker"]["stop_grace_period"] == "5m"


def test_the_compose_server_reaches_its_database_as_prefect_reads_it(services: dict[str, Any]) -> None:
    settings = {k: v for k, v in services["server"]["environment"].items() if "DATABASE" in k}
    settings["PREFECT_SERVER_DATABASE_PASSWORD"] = "p@ss/word"
    code = "from prefect.server.database.dependencies import provide_database_interface as database\nprint(database().database_config.connection_url)"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    found = subprocess.run(
        [sys.executable, "-c", code], env=kept | settings, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "postgresql+asyncpg://forgeline:p%40ss%2Fword@postgres:5432/prefect"


def documents() -> Iterator[dict[str, Any]]:
    for path in MANIFESTS:
        yield from yaml.safe_load_all(path.read_text())


def pods() -> dict[str, Any]:
    return {d["metadata"]["name"]: d["spec"]["template"] for d in documents() if "template" in d.get("spec", {})}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kubernetes_takes(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        kubernetes_validate.validate(document, "1.37", strict=True)
        assert document["kind"] != "Secret"
        assert document["metadata"]["name" if document["kind"] == "Namespace" else "namespace"] == "forgeline"
    listed = yaml.safe_load((PLATFORM / "kubernetes/kustomization.yaml").read_text())
    assert path.name in listed["resources"] and listed["images"][0]["newTag"] == PROJECT["version"]


def test_pods_name_their_secrets_and_resources() -> None:
    for name, pod in pods().items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"] and not pod["spec"]["automountServiceAccountToken"]
        for container in pod["spec"]["containers"]:
            assert pinned(container["image"]), name
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]) and container["resources"]["limits"]
            secret = [entry for entry in container["env"] if SECRET.search(entry["name"])]
            assert secret and all("value" not in entry for entry in secret), name
            assert {entry["valueFrom"]["secretKeyRef"]["key"] for entry in secret} <= set(EXAMPLE)
    assert pods()["worker"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_manifests_point_to_each_other() -> None:
    ports = {
        pod["metadata"]["labels"]["app"]: [p["containerPort"] for c in pod["spec"]["containers"] for p in c["ports"]]
        for pod in pods().values()
    }
    for document in documents():
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert spec["ports"][0]["port"] in ports[spec["selector"]["app"]]
        if document["kind"] == "NetworkPolicy" and "ingress" in spec:
            assert spec["ingress"][0]["ports"][0]["port"] in ports[spec["podSelector"]["matchLabels"]["app"]]
            assert spec["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["app"] in ports
        if "template" in spec:
            assert spec["selector"]["matchLabels"] == spec["template"]["metadata"]["labels"]


def test_the_image_is_made_of_what_is_there() -> None:
    text = (PLATFORM / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    ignore = (PLATFORM / "Dockerfile.dockerignore").read_text().splitlines()
    let_in = [line[1:] for line in ignore if line.startswith("!")]
    copied = [source for step, rest in steps if step == "COPY" for source in shlex.split(rest)[:-1]]
    assert {"flows", "tasks", "infra", "constraints.txt"} <= set(copied)
    for source in copied:
        assert (ROOT / source).exists() and any(fnmatch.fnmatch(source, pattern) for pattern in let_in), source
    (base,) = [rest for step, rest in steps if step == "FROM"]
    assert PINNED.match(base) and SpecifierSet(PROJECT["requires-python"]).contains(
        base.partition(":")[2].partition("-")[0]
    )
    (installed,) = [rest for step, rest in steps if step == "RUN" and "pip install" in rest]
    extras = re.search(r"'\.\[(.*)\]'", installed)
    assert "-c constraints.txt" in installed and extras
    assert set(extras[1].split(",")) <= set(PROJECT["optional-dependencies"])
    assert [rest for step, rest in steps if step == "USER"] == [
        str(pods()["worker"]["spec"]["securityContext"]["runAsUser"])
    ]
    (entry,) = [json.loads(rest) for step, rest in steps if step == "ENTRYPOINT"]
    assert entry == ["python", "-m", "infra.platform.outlive"]


LEAVES = """
import os, signal, subprocess, sys
save = "import signal, sys, time; signal.pthread_sigmask(signal.SIG_BLOCK, {15}); print('up', flush=True); signal.sigwait({15}); time.sleep(0.7); open(sys.argv[1], 'w').write('saved')"
child = subprocess.Popen([sys.executable, "-c", save, sys.argv[1]], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
def leave(*_):
    child.send_signal(15)
    os._exit(7)
signal.signal(15, leave)
print("ready", flush=True)
signal.pause()
"""


def test_a_container_ends_when_what_its_worker_left_behind_has_saved(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoint"
    command = [sys.executable, "-m", "infra.platform.outlive", sys.executable, "-c", LEAVES, str(saved)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert first.stdout.readline() == b"ready\n"
    began = time.monotonic()
    first.send_signal(signal.SIGTERM)
    assert first.wait(20) == 7 and saved.read_text() == "saved" and time.monotonic() - began > 0.6
    assert subprocess.run([*command[:3], "sh", "-c", "kill -9 $$"], cwd=ROOT).returncode == 137


def test_prefect_yaml_is_one_as_prefect_reads_it() -> None:
    code = (
        "from prefect.cli.deploy._models import PrefectYamlModel as Model; import sys, yaml\n"
        "print(Model.model_validate(yaml.safe_load(sys.stdin)).model_dump_json())"
    )
    text = (ROOT / "prefect.yaml").read_text()
    found = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True, check=True)
    (deployment,) = json.loads(found.stdout)["deployments"]
    written = yaml.safe_load(text)["deployments"][0]
    assert set(written) <= set(deployment), "Prefect ignores what it does not know"
    assert (ROOT / deployment["parameters"]["file"]).is_file()
    module, _, function = deployment["entrypoint"].rpartition(".")
    assert f"def {function}(file" in (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()

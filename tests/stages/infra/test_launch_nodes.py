"""A job of several nodes: the place of every rank, the interface to the other node, and specs that cannot be.

Two launchers on one machine stand for two nodes here; `tests/e2e/test_two_nodes.py` gives each a network of its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import StageError, UsageError
from infra.launch.launcher import JobSpec
from infra.launch.local import LocalLauncher
from infra.launch.network import free_port, interface_towards

ENTRY = """
import json, os, time

def describe(folder):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME")
    found = {name: os.environ.get(name) for name in names}
    (folder / f"seen-{found['RANK']}.json").write_text(json.dumps(found))

def third_fails(folder):
    if os.environ["RANK"] == "3":
        return 9
    time.sleep(60)
"""
LOOPBACK = interface_towards("127.0.0.1")


@pytest.fixture(scope="module")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LocalLauncher]]:
    made = [LocalLauncher(tmp_path_factory.mktemp(f"node-{n}")) for n in (0, 1)]
    for launcher in made:
        launcher.prestart()
    yield made
    for launcher in made:
        launcher.close()


def submit_both(launchers: list[LocalLauncher], folder: Path, function: str, **env: str) -> list[object]:
    (folder / "nodes_entry.py").write_text(ENTRY)
    port, jobs = free_port(), []
    for node, launcher in enumerate(launchers):
        (folder / str(node)).mkdir()
        spec = JobSpec(
            "base",
            folder / str(node),
            f"nodes_entry:{function}",
            ranks=2,
            env={"PYTHONPATH": str(folder), **env},
            nodes=2,
            node_rank=node,
            master_addr="localhost",
            master_port=port,
        )
        jobs.append(launcher.submit(spec))
    return jobs


def test_ranks_are_counted_over_the_nodes(launchers: list[LocalLauncher], tmp_path: Path) -> None:
    assert [job.wait(60) for job in submit_both(launchers, tmp_path, "describe")] == [0, 0]
    seen = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*/seen-*.json"))]
    assert [place["RANK"] for place in seen] == ["0", "1", "2", "3"]
    assert [place["LOCAL_RANK"] for place in seen] == ["0", "1", "0", "1"]
    assert {(place["WORLD_SIZE"], place["LOCAL_WORLD_SIZE"]) for place in seen} == {("4", "2")}
    assert {place["MASTER_ADDR"] for place in seen} == {"localhost"} and len({p["MASTER_PORT"] for p in seen}) == 1
    assert {place["GLOO_SOCKET_IFNAME"] for place in seen} == {LOOPBACK}
    assert {path.name for path in (tmp_path / "1").glob("*.beat")} == {"rank-2.beat", "rank-3.beat"}


def test_an_interface_that_the_user_chose_stays(launchers: list[LocalLauncher], tmp_path: Path) -> None:
    jobs = submit_both(launchers, tmp_path, "describe", GLOO_SOCKET_IFNAME="chosen0")
    assert [job.wait(60) for job in jobs] == [0, 0]
    assert json.loads((tmp_path / "1/seen-2.json").read_text())["GLOO_SOCKET_IFNAME"] == "chosen0"


def test_a_launcher_answers_for_its_own_ranks_by_their_global_number(
    launchers: list[LocalLauncher], tmp_path: Path
) -> None:
    """Node 0 does not see that rank 3 failed; its ranks would notice in their next collective, which these have not."""
    first, second = submit_both(launchers, tmp_path, "third_fails")
    assert second.wait(30) == 9 and second.reason == "rank 3 exited 9"
    assert first.wait(0) is None
    first.cancel()
    assert first.wait(0) != 0


def test_a_single_node_is_told_no_interface(launchers: list[LocalLauncher], tmp_path: Path) -> None:
    (tmp_path / "nodes_entry.py").write_text(ENTRY)
    spec = JobSpec("base", tmp_path, "nodes_entry:describe", env={"PYTHONPATH": str(tmp_path)}, master_port=23456)
    assert launchers[0].submit(spec).wait(60) == 0
    seen = json.loads((tmp_path / "seen-0.json").read_text())
    assert seen["GLOO_SOCKET_IFNAME"] == os.environ.get("GLOO_SOCKET_IFNAME")
    assert (seen["WORLD_SIZE"], seen["MASTER_ADDR"], seen["MASTER_PORT"]) == ("1", "127.0.0.1", "23456")


def test_the_interface_is_the_one_that_has_the_address() -> None:
    for name, addresses in psutil.net_if_addrs().items():
        mine = [each.address for each in addresses if each.family.name == "AF_INET"]
        assert all(interface_towards(address) == name for address in mine)


def test_an_address_that_leads_nowhere_is_refused_before_a_process_starts(
    launchers: list[LocalLauncher], tmp_path: Path
) -> None:
    spec = JobSpec("base", tmp_path, nodes=2, master_addr="no-such-host.invalid", master_port=23456)
    with pytest.raises(StageError, match=r"master_addr: no way to no-such-host\.invalid"):
        launchers[0].submit(spec)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"nodes": 2, "node_rank": 2, "master_port": 1}, "node_rank 2 is not one of 2"),
        ({"node_rank": 1}, "node_rank 1 is not one of 1"),
        ({"node_rank": -1}, "node_rank -1 is not one of 1"),
        ({"nodes": 2}, "needs a port to meet on"),
    ],
)
def test_a_place_that_cannot_be_is_refused(given: dict[str, int], message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        JobSpec("base", tmp_path, **given)  # type: ignore[arg-type]

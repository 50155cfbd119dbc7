"""`forgeline doctor`: checks do not stand in each other's way, and each finds what it is for."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.checks import machine, store, tracking
from flows.checks.check import Check, Finding, clocks, examine
from infra import claims
from infra.errors import StoreError
from infra.open_store import open_store


def test_a_check_that_fails_or_hangs_does_not_keep_the_others_from_running() -> None:
    hanging = threading.Event()

    def refused() -> Finding:
        raise StoreError("refused", where="there", hint="Knock.")

    results = examine(
        [
            Check("refused", refused),
            Check("broken", lambda: Finding("ok", str(1 // 0))),
            Check("hangs", lambda: hanging.wait() and None, seconds=0.1, overdue="warning"),
            Check("nothing", lambda: None),
            Check("needs", lambda: Finding("ok", "never said"), after="refused"),
            Check("may", lambda: Finding("ok", "said"), after="hangs"),
        ]
    )
    hanging.set()
    assert [(r.name, r.finding.level) for r in results] == [
        ("refused", "fault"),
        ("broken", "fault"),
        ("hangs", "warning"),
        ("needs", "warning"),
        ("may", "ok"),
    ]
    assert results[0].finding == Finding("fault", "there: refused", "Knock.")
    assert "ZeroDivisionError" in results[1].finding.said
    assert results[3].finding.mend == "Mend `refused` first."
    assert all(result.finding.mend for result in results if result.finding.level != "ok")


@pytest.mark.parametrize(
    ("seconds", "level", "says"),
    [(4, "ok", "agree"), (-30, "warning", "30 s behind"), (61, "fault", "61 s ahead of"), (-3600, "fault", "behind")],
)
def test_clocks(seconds: float, level: str, says: str) -> None:
    found = clocks("the store's clock", seconds)
    assert found.level == level and says in found.said


def test_packages_outside_their_range_are_named_with_the_range() -> None:
    ours = [line for line in machine.metadata.requires("forgeline") or [] if line.startswith(("pyyaml", "rich"))]
    assert ours and machine.packages(ours).level == "ok"
    found = machine.packages([*ours, "numpy>=1000", "no-such-thing>=1", 'not-asked-for>=1; extra == "more"'])
    assert found.level == "fault" and found.mend.startswith("pip install 'numpy>=1000' 'no-such-thing>=1'")
    assert "rich" not in found.said and "missing" in found.said
    assert machine.packages(['numpy>=1000; extra == "more"']).level == "warning"
    assert machine.python("3.9.1").level == "fault" and machine.python().level == "ok"


def test_secrets_are_named_and_not_told() -> None:
    environ = {"WANDB_API_KEY": "marked-1", "AWS_SECRET_ACCESS_KEY": "marked-2", "PATH": "/bin", "HF_TOKEN": ""}
    found = machine.secrets(environ)
    assert found.level == "fault" and "AWS_ACCESS_KEY_ID is not" in found.said
    found = machine.secrets({**environ, "AWS_ACCESS_KEY_ID": "marked-3"})
    assert found == Finding("ok", "set, by name: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, WANDB_API_KEY")


def test_disk_space_is_that_of_the_folder_or_of_where_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {"FORGELINE_HOME": tmp_path / "not" / "yet"}
    free = machine.shutil.disk_usage(tmp_path).free
    for size, level in ((free / 2, "ok"), (free * 2, "warning")):
        monkeypatch.setattr(machine, "LITTLE", size)
        assert machine.disk(folders).level == level
    monkeypatch.setattr(machine, "TOO_LITTLE", free * 2)
    found = machine.disk(folders)
    assert found.level == "fault" and "FORGELINE_HOME" in found.mend
    assert not (tmp_path / "not").exists()


def test_a_store_that_works_and_one_that_cannot(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    results = examine(store.checks(url))
    assert [result.finding.level for result in results] == ["ok"] * 5
    assert "create-only honoured" in results[0].finding.said
    assert [path for path in Path(url).rglob("*") if path.is_file()] == [], "what was tried is removed"
    (tmp_path / "file").write_text("")
    results = examine(store.checks(str(tmp_path / "file")))
    assert [result.finding.level for result in results] == ["fault", *["warning"] * 4]


def test_a_store_that_ignores_create_only_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.store_file import FileStore

    def careless(self: FileStore, path: str, data: bytes) -> bool:
        self.write_bytes(path, data)
        return True

    monkeypatch.setattr(FileStore, "create", careless)
    (first, *_) = examine(store.checks(str(tmp_path)))
    assert first.finding.level == "fault" and "ignores create-only" in first.finding.said


TAKE = """
import sys
from infra import claims
from infra.open_store import open_store
claims.try_acquire(open_store(sys.argv[1]), "pretrain", "0123456789abcdef", 60.0)
print("held", flush=True)
sys.stdin.read()
"""


def test_claims_tell_the_living_from_the_dead(tmp_path: Path) -> None:
    here = open_store(str(tmp_path))
    claims.try_acquire(here, "evaluate", "released", 60.0).release()
    holder = subprocess.Popen([sys.executable, "-c", TAKE, here.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        found = store.claims(here.url)
        said = f"1 at work (pretrain 0123456789 by process {holder.pid} of this machine"
        assert found.level == "ok" and found.said.startswith(said)
    finally:
        holder.kill()
        holder.wait()
    found = store.claims(here.url)
    assert found.level == "warning" and found.said.startswith("1 of runs that were killed (pretrain 0123456789")
    claims.try_acquire(here, "pretrain", "0123456789abcdef", 60.0).release()
    assert store.claims(here.url) == Finding("ok", "nobody is at work")


def test_leftovers_are_attempts_that_nothing_names_and_nobody_works_on(tmp_path: Path) -> None:
    here, out = open_store(str(tmp_path / "store")), tmp_path / "out"
    out.mkdir()
    (out / "weights").write_bytes(b"w" * 100)
    for key in ("done", "twice"):
        here.commit(kind="k", type="model", key=key, attempt="a", payload_dir=out, identity={})
    for lost in ("twice/b", "cut-off/a", "at-work/a"):
        here.put_file(out / "weights", f"artifacts/k/{lost}/payload/weights")
    here.put_file(out / "weights", ".tmp/of-a-killed-process")
    held = claims.try_acquire(here, "k", "at-work", 60.0)
    assert store.left(here.url).level == "ok", "young ones may be under way"
    for path in Path(tmp_path / "store").rglob("*"):
        if path.is_file() and "claims" not in path.parts:
            os.utime(path, (time.time() - 2 * 86400,) * 2)
    assert store.left(here.url).said == "2 attempts of killed runs (0.0 MB), 1 uploads cut short"
    held.release()
    assert store.left(here.url).said.startswith("3 attempts")


def test_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    online = {"WANDB_API_KEY": "marked", "WANDB_BASE_URL": "http://127.0.0.1:9"}
    assert tracking.wandb({}).level == tracking.wandb({"WANDB_MODE": "disabled"}).level == "ok"
    assert "WANDB_API_KEY is not set" in tracking.wandb({"WANDB_MODE": "online"}).said
    found = tracking.wandb(online)
    assert found.level == "warning" and "127.0.0.1:9 does not answer" in found.said and "marked" not in str(found)

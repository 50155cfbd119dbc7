"""What can go wrong with S3 only: addresses, secrets, careless servers, lost answers, the local cache."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from infra import store_s3
from infra.artifacts import Manifest
from infra.errors import CorruptArtifact, StoreError, StoreUnreachable
from infra.open_store import open_store
from infra.patience import Patience
from infra.store import Store

pytestmark = pytest.mark.e2e


@pytest.fixture(autouse=True)
def s3_environment(seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def proxy(seaweed: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    proxy = load("e2e/flaky_proxy.py").FlakyProxy(seaweed.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    yield proxy
    proxy.close()


def commit(store: Store, folder: Path, size: int = 1000) -> Manifest:
    (folder / "sub").mkdir(parents=True)
    (folder / "weights").write_bytes(os.urandom(size))
    (folder / "sub/config").write_text("{}")
    return again(store, folder, "a")


def again(store: Store, folder: Path, attempt: str) -> Manifest:
    return store.commit(kind="k", type="model", key="1", attempt=attempt, payload_dir=folder, identity={})


# --- answers that are wrong -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Page:
    """What a proxy under maintenance says, whatever was asked for."""

    status: int = 200
    body: bytes = b"<html>We are back in a minute.</html>"


@pytest.fixture
def faulty(seaweed: Any, load: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    server = load("e2e/faulty_s3.py").FaultyS3(seaweed.port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setattr(store_s3.S3Store, "glances", (0.1,))
    monkeypatch.setattr(store_s3.S3Store, "doubts", (0.1, 0.1))
    yield server
    server.stop()


def test_a_page_instead_of_objects_costs_no_good_artifact(seaweed: Any, faulty: Any, tmp_path: Path) -> None:
    """Of a manifest for a while, of all files for a while, and for good."""
    store = open_store(seaweed.url("page"))
    made = commit(store, tmp_path / "out")
    held = sorted(store.walk("artifacts"))
    for about, answers in (("k/1/manifest.json", 3), ("k/1/", 2), ("k/1/manifest.json", 10**6)):
        left = [answers]

        def page(request: Any, about: str = about, left: list[int] = left) -> Any:
            if request.method != "GET" or f"artifacts/{about}" not in request.path or "list-type" in request.path:
                return None
            left[0] -= 1
            return Page() if left[0] >= 0 else None

        faulty.intercept = page
        if about.endswith("manifest.json"):
            with pytest.raises(CorruptArtifact):
                store.manifest("k", "1")
        if answers == 10**6:
            with pytest.raises(StoreUnreachable, match="nothing was moved"):
                store.quarantine("k", "1")
        else:
            assert store.quarantine("k", "1") is None
        faulty.intercept = lambda request: None
        assert sorted(store.walk("artifacts")) == held and store.list("quarantine") == []
        assert store.manifest("k", "1") == made


def test_one_wrong_answer_is_asked_again_and_never_seen(seaweed: Any, faulty: Any, tmp_path: Path) -> None:
    store = open_store(seaweed.url("page-once"))
    made = commit(store, tmp_path / "out")
    for about in ("manifest.json", "payload/weights"):
        wrong = [Page()]
        faulty.intercept = lambda request, about=about, wrong=wrong: (
            wrong.pop() if wrong and request.method == "GET" and about in request.path else None
        )
        assert (store.fetch(made) if about != "manifest.json" else store.manifest("k", "1")) and not wrong


# --- opening ----------------------------------------------------------------------------------------------------------


def test_a_clock_that_is_an_hour_off_is_named(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from botocore import auth

    now = auth.get_current_datetime
    monkeypatch.setattr(auth, "get_current_datetime", lambda *how, **more: now(*how, **more) - timedelta(hours=1))
    with pytest.raises(StoreError, match=r"clock.*differ too much\n.*forgeline doctor"):
        open_store(seaweed.url())


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
def test_wrong_credentials(seaweed: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "nonsense-value")
    with pytest.raises(StoreError, match="credentials") as caught:
        open_store(seaweed.url())
    assert "AWS_SECRET_ACCESS_KEY" in caught.value.hint and "nonsense-value" not in str(caught.value)
    assert not caught.value.transient


def test_no_credentials(seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="no usable S3 credentials"):
        open_store(seaweed.url())


def test_missing_bucket() -> None:
    with pytest.raises(StoreError, match="bucket does not exist"):
        open_store("s3://no-such-bucket/x")


def test_refused_connection_fails_within_seconds(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnreachable, match="did not answer") as caught:
            open_store(seaweed.url())
    assert time.monotonic() - started < 5 and caught.value.transient


def test_a_server_that_never_answers_meets_the_deadline(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_s3, "CHECK_DEADLINE", 1.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(StoreUnreachable):
            open_store(seaweed.url())
    assert time.monotonic() - started < 6


def test_a_server_that_ignores_create_only_is_refused(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with load("e2e/careless_s3.py").CarelessS3() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        open_store("s3://bucket/x")
        with pytest.raises(StoreError, match="ignores create-only"):
            open_store("s3://bucket/x", probe=True)
        assert server.objects == {}, "the probe cleans up"
        server.shutdown()


# --- a flaky network --------------------------------------------------------------------------------------------------


def test_a_create_whose_answer_was_lost_is_still_ours(seaweed: Any, proxy: Any) -> None:
    store = open_store(seaweed.url("lost"))
    proxy.break_next(b"PUT")
    assert store.create("x/1", b"mine") is True
    assert proxy.broken == 1, "the fault happened"
    assert store.create("x/1", b"mine") is False, "equal bytes from another call are another writer's"


def test_an_answer_that_breaks_off_is_fetched_again(seaweed: Any, proxy: Any, tmp_path: Path) -> None:
    store = open_store(seaweed.url("cut"))
    made = commit(store, tmp_path / "out", size=200_000)
    proxy.break_next(rb"GET \S+/weights", after=50_000)
    assert (store.fetch(made) / "weights").read_bytes() == (tmp_path / "out/weights").read_bytes()
    assert proxy.broken == 1


def test_a_commit_killed_at_any_time_leaves_nothing_or_everything(seaweed: Any, tmp_path: Path) -> None:
    commit(open_store(seaweed.url("warm")), tmp_path / "out", size=9 << 20)
    for number, delay in enumerate((0.05, 0.2, 0.5)):
        store = open_store(seaweed.url("kill"))
        pid = os.fork()
        if pid == 0:
            try:
                again(store, tmp_path / "out", "killed")
            finally:
                os._exit(0)
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        found = store.manifest("k", "1")
        made = again(store, tmp_path / "out", f"after{number}")
        assert made.attempt == ("killed" if found else f"after{number}")
        assert store.fetch(made).is_dir()


def test_parts_left_by_a_killed_upload_are_dropped_when_old(seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(seaweed.url("orphan"))
    store._call("", "_call_s3", "create_multipart_upload", **store._key("artifacts/x"))

    def orphans() -> int:
        return len(store._call("", "_call_s3", "list_multipart_uploads", Bucket=store._bucket).get("Uploads", []))

    before = orphans()
    store.probe()
    assert orphans() == before >= 1, "a young one may belong to a living process"
    monkeypatch.setattr(store_s3, "STALE", timedelta(seconds=-5))
    store.probe()
    assert orphans() == before - 1


# --- the cache --------------------------------------------------------------------------------------------------------


def test_a_cached_artifact_is_reused_after_verification(seaweed: Any, tmp_path: Path) -> None:
    store = open_store(seaweed.url("cache"))
    made = commit(store, tmp_path / "out")
    folder = store.fetch(made)
    content = (folder / "weights").read_bytes()
    (folder / "sub/config").write_text("[]")
    (folder / "stranger.json").write_text("{}")
    assert store.fetch(made) == folder
    assert (folder / "sub/config").read_text() == "{}" and not (folder / "stranger.json").exists()
    store.delete_tree("artifacts/k/1/a")
    assert (store.fetch(made) / "weights").read_bytes() == content, "nothing is downloaded twice"
    (folder / "weights").unlink()
    with pytest.raises(CorruptArtifact, match="weights: missing"):
        store.fetch(made)
    assert list((tmp_path / "cache/.tmp").iterdir()) == []


def test_fetching_at_once_is_safe(seaweed: Any, tmp_path: Path) -> None:
    store = open_store(seaweed.url("twice"))
    made = commit(store, tmp_path / "out", size=3_000_000)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: open_store(store.url).fetch(made), range(4)))
    assert len(folders) == 1
    assert (folders.pop() / "weights").read_bytes() == (tmp_path / "out/weights").read_bytes()


def test_a_full_cache_disk_is_named(seaweed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        store = open_store(seaweed.url("full"))
        made = commit(store, tmp_path / "out", size=3_000_000)
        monkeypatch.setenv("FORGELINE_CACHE", str(small))
        with pytest.raises(StoreError, match="no space left") as caught:
            store.fetch(made)
        assert "FORGELINE_CACHE" in str(caught.value) and list((small / ".tmp").iterdir()) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


# --- away for seconds -------------------------------------------------------------------------------------------------


def test_a_server_that_restarts_costs_nothing_but_the_time(seaweed: Any, faulty: Any, tmp_path: Path) -> None:
    """Every operation meets an outage, which ends once the operation waits."""
    store = open_store(seaweed.url())
    (tmp_path / "file").write_bytes(b"streamed")
    said: list[str] = []

    def back(text: str) -> None:
        said.append(text)
        faulty.start()

    def in_an_outage(call: Any) -> Any:
        faulty.stop()
        store.patience = Patience(60.0, say=back)
        return call()

    in_an_outage(lambda: store.write_bytes("a/b", b"bytes"))
    assert in_an_outage(lambda: store.read_bytes("a/b")) == b"bytes"
    assert in_an_outage(lambda: store.create("a/c", b"mine")) is True
    assert in_an_outage(lambda: store.create("a/c", b"theirs")) is False
    assert in_an_outage(lambda: store.exists("a/c")) is True
    assert in_an_outage(lambda: store.list("a")) == ["b", "c"]
    assert in_an_outage(lambda: list(store.walk("a"))) == ["a/b", "a/c"]
    assert in_an_outage(lambda: store.modified("a/b")) > 0
    in_an_outage(lambda: store.put_file(tmp_path / "file", "a/d"))
    in_an_outage(lambda: store.get_file("a/d", tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"streamed"
    in_an_outage(lambda: store.delete("a/b"))
    in_an_outage(lambda: store.delete_tree("a"))
    assert store.list("a") == []
    assert len(said) == 12 and all("the store is away and waited for, 60 s at most" in text for text in said)


def test_a_create_whose_answers_are_lost_for_seconds_is_not_lost_to_itself(
    seaweed: Any, load: Any, faulty: Any
) -> None:
    fault = load("e2e/faulty_s3.py").ServerFault(503, "ServiceUnavailable")
    store = open_store(seaweed.url(), patience=Patience(60.0))
    done: list[int] = []

    def lose(request: Any) -> Any:
        if request.method == "PUT" and len(done) < 7:
            done.append(faulty.forward(request)[0])
            return fault
        return None

    faulty.intercept = lose
    assert store.create("refs/x/000001.json", b"mine") is True
    assert done[0] == 200 and set(done[1:]) == {412}
    faulty.intercept = lambda request: None
    assert store.create("refs/x/000001.json", b"theirs") is False and store.read_bytes("refs/x/000001.json") == b"mine"

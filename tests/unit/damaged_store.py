"""A small store with one of everything in it, made without training, and ways to damage what lies there."""

from __future__ import annotations

import contextlib
import io
import json
import random
import re
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from flows import cli
from flows.checks.check import examine
from flows.checks.store import claims as check_claims
from flows.checks.store import left
from flows.repair import plan_around_damage
from flows.run import REPAIR_ROUNDS
from infra import claims, refs
from infra.checkpoints import CheckpointStore
from infra.collector import collect
from infra.errors import CorruptArtifact, ForgelineError
from infra.open_store import open_store
from infra.process_id import this_process
from infra.store_file import FileStore
from tasks.plan import watching
from tasks.plan.chosen_inputs import bound
from tasks.plan.plan import resolve_in, resolve_refs
from tasks.plan.resolved import stored
from tasks.run import decided_run
from tasks.run.execute import StageResult, _finish
from tasks.run.record import RunRecord

RUNS = ("20260101-000000-aaaa", "20260102-000000-aaaa", "20260103-000000-aaaa")
PRODUCTION = "fresh/production"
TRUE = "0.8125"
"""The accuracy of every model, so that another one that is printed is wrong."""
ALLOWED = (0, 2, 3, 4)
HEX = re.compile(r"(?<![-0-9a-zA-Z])(?=[0-9]*[a-f])[0-9a-f]{10,64}(?![-0-9a-zA-Z])")
ACCURACY = re.compile(r"accuracy\"?[: ]+\"?([-+0-9.e]+)")


def of_house(load: Callable[[str], Any]) -> type[Any]:
    """The class of such a store; `load`: the fixture."""
    house = load("unit/house.py")
    hand = load("unit/committed.py")

    class Full(house.House):
        """The pipeline of `house.py`, run twice, with new data waiting and a training cut short."""

        def __init__(self, folder: Path, *, build: bool = True) -> None:
            if build:
                super().__init__(folder)
                self._build()
            else:
                self.folder, self.store = folder, open_store(str(folder / "store"))

        def copy(self, folder: Path) -> Any:
            shutil.copytree(self.folder, folder)
            return Full(folder, build=False)

        def judged(self, resolved: Any) -> dict[str, Any]:
            scores = self.store.manifest("evaluate", resolved.inputs["scores"][0].key)
            model = scores.inputs["models"][0]
            judged = {part: model[part] for part in ("kind", "key", "digest", "type")}
            return {"passed": True, "candidate": {"name": "onnx", **judged}}

        def metrics(self, node: Any) -> dict[str, float]:
            return {"accuracy": 0.8125, "loss": 0.84375}

        def producer(self, node: Any) -> dict[str, Any]:
            return {"pipeline": "fresh", "stage": node.name, "run": RUNS[0]}

        def settle(self) -> None:
            """What a run does, but for the stages' work, which is written down instead of done."""
            for last in (*[False] * REPAIR_ROUNDS, True):
                try:
                    return self._round()
                except CorruptArtifact as error:
                    if self.store.quarantine(error.kind, error.key, error.attempt) is None and last:
                        raise

        def _round(self) -> None:
            pipeline = bound(self.pipeline(), self.store)
            plan_around_damage(pipeline, self.store)
            context: Any = SimpleNamespace(store=self.store, pipeline=pipeline.name, run=RUNS[-1])
            known = resolve_refs(pipeline, self.store)
            for node in pipeline.stages.values():
                resolved = resolve_in(self.store, node, known)
                manifest = stored(self.store, node.stage.kind, resolved)
                if manifest is None:
                    claim = claims.wait_for(self.store, node.stage.kind, resolved.key, lease=0.05, poll=0.01)
                    assert isinstance(claim, claims.Claim)
                    with claim:
                        CheckpointStore(self.store, node.stage.kind, resolved.key).latest()
                        manifest = self.make(node, resolved, passes=True)
                known[node.name] = _finish(node, StageResult("reuse", manifest), context).manifest.ref

        def _build(self) -> None:
            lost, torn = (hand.commit(self.store, name, params={"lost": name}) for name in ("lost", "torn"))
            hand.age(self.store, 8)
            collect(self.store, hand.Keep(grace=7 * hand.DAY, runs=0, history=9))
            assert self.store.manifest("dataset", lost.key) is None, "it is in the trash"
            self.store.write_bytes(f"quarantine/dataset/{torn.key}/a-1/manifest.json", b"{")
            for run in RUNS[:2]:
                self.settle()
                self._record(run)
                self.data(run)
            self._record(RUNS[2], status="running")
            pipeline = self.pipeline()
            known = {name: refs.get(self.store, f"fresh/{name}/latest").artifact for name in ("corpus", "words")}
            texts = pipeline.stages["texts"]
            resolved = resolve_in(self.store, texts, known)
            known["texts"] = self.make(texts, resolved, passes=True).ref
            bounded = bound(pipeline, self.store)
            training = resolve_in(self.store, bounded.stages["model"], known | resolve_refs(bounded, self.store))
            (self.folder / "weights").write_bytes(b"weights")
            for step in (5, 10):
                CheckpointStore(self.store, "finetune", training.key).commit(
                    step, {"w": self.folder / "weights"}, {"step": step}
                )
            for key, process in ((training.key, 2**22 + 1), ("e" * 64, this_process()["pid"])):
                claim = claims.try_acquire(self.store, "finetune", key)
                assert claim is not None
                claim.release()
                holder = {"owner": "x", "lease": 0.05, **this_process(), "pid": process, "machine": "another"}
                place = f"claims/finetune/{key}/000002"
                self.store.create(f"{place}.json", claims.HOLDER.encode(holder))
                self.store.create(f"{place}.beat.json", claims.BEAT.encode({"count": 3, "released": False}))
            entry = watching.write_entry(self.store, "fresh", None, "f" * 64, {"texts": known["texts"]}, "new")
            assert entry is not None
            decided_run.note_start(self.store, "fresh", entry, None, {"run": RUNS[1]}, 0)
            self._job()

        def _record(self, run: str, status: str = "ok") -> None:
            pipeline = bound(self.pipeline(), self.store)
            record = RunRecord(run, pipeline, self.store)
            for name, node in pipeline.stages.items():
                entry = refs.get(self.store, f"fresh/{name}/latest")
                manifest = self.store.manifest(entry.kind, entry.key)
                record.note(name, StageResult("run" if status == "ok" else "reuse", manifest, "new", False))
                assert node.stage.kind == entry.kind
            record.data["process"]["pid"] = 2**22 + 1
            record.finish(status)

        def _job(self) -> None:
            place = self.folder / "home/runs" / RUNS[2] / "model/a"
            place.mkdir(parents=True)
            files = {
                "job.json": '{"store": "s", "kind": "finetune", "key": "k"}',
                "events.jsonl": '{"step": 1, "total": 4, "seconds": 1.0}\n{"step": 2, "total": 4, "seconds": 2.0}\n',
                "metrics.jsonl": '{"step": 1, "seconds": 1.0, "values": {"loss": 1.0}}\n',
                "phases.json": '{"started": 1.0}',
                "log.txt": "hello\n",
            }
            for name, text in files.items():
                (place / name).write_text(text)

    return Full


def objects(folder: Path) -> dict[str, list[Path]]:
    """Every JSON object of such a store and of its runs' folders, by class."""
    store = folder / "store"
    classes = {
        "claim": "claims/**/??????.json",
        "heartbeat": "claims/**/*.beat.json",
        "latest": "refs/**/latest/*.json",
        "production": "refs/fresh/production*/*.json",
        "run record": "runs/*/run.json",
        "journal": "journals/**/*.json",
        "checkpoint": "checkpoints/**/manifest.json",
        "manifest": "artifacts/**/manifest.json",
        "trash": "trash/**/manifest.json",
        "quarantine": "quarantine/**/manifest.json",
    }
    found = {name: sorted(store.glob(pattern)) for name, pattern in classes.items()}
    found["job"] = sorted(folder.glob("home/runs/**/*.json*"))
    assert all(found.values()), [name for name, paths in found.items() if not paths]
    return found


Damage = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, rng: random.Random) -> bytes:
    place, bit = rng.randrange(len(data)), 1 << rng.randrange(8)
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def swap(data: bytes, rng: random.Random) -> bytes:
    """One value becomes one of another type, however deep it lies."""
    try:
        whole = json.loads(data)
    except ValueError:
        return b"[]"
    places = list(_places(whole))
    if not places:
        return b"7"
    holder, name = rng.choice(places)
    others: list[Any] = [None, True, -1, 1.5, 10**30, "x", "\ud800", "../../x", [], {}, [None], {"a": []}]
    holder[name] = rng.choice([other for other in others if type(other) is not type(holder[name])])
    return json.dumps(whole).encode()


def old_and_swapped(data: bytes, rng: random.Random) -> bytes:
    """As `swap`, in an object of a version before checksums."""
    try:
        whole = json.loads(data)
    except ValueError:
        return b"{}"
    if isinstance(whole, dict) and "checksum" in whole:
        whole = {name: value for name, value in whole.items() if name not in ("checksum", "warnings")}
        whole = {**whole, "format": 1} if "payload" in whole or "files" in whole else {**whole}
        whole.pop("format") if "payload" not in whole and "files" not in whole else None
    return swap(json.dumps(whole).encode(), rng)


def number(data: bytes, rng: random.Random) -> bytes:
    """A number becomes none that JSON or anybody can hold."""
    spots = list(re.finditer(rb"(?<=[:\[ ])-?[0-9][0-9.e+-]*(?=[,\s}\]])", data))
    text = rng.choice([b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"1" * 400])
    if not spots:
        return text
    spot = rng.choice(spots)
    return data[: spot.start()] + text + data[spot.end() :]


DAMAGES: dict[str, Damage] = {
    "bit flip": flip,
    "cut off": lambda data, rng: data[: rng.randrange(len(data))],
    "empty": lambda data, rng: b"",
    "null": lambda data, rng: b"null",
    "other type": swap,
    "old, other type": old_and_swapped,
    "not UTF-8": lambda data, rng: b"\xff\xfe" + data,
    "number": number,
    "deep": lambda data, rng: b'{"a":' * 50_000,
    "a page of a server": lambda data, rng: b"<html>503 maintenance</html>",
}


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for name, inner in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield value, name
        yield from _places(inner)


def commands(full: Any) -> list[list[str]]:
    """Every command that reads a store; those that change it come last."""
    file, store = str(full.folder / "p.yaml"), ["--store", str(full.folder / "store")]
    page = str(full.folder / "page.html")
    model = refs.past(full.store, PRODUCTION).entries
    name = f"{model[-1].kind}/{model[-1].key[:16]}" if model else "export/0"
    return [
        ["plan", file, *store],
        ["plan", file, "--json", *store],
        ["status", *store],
        ["status", RUNS[0], *store],
        ["logs", RUNS[2], *store],
        ["cancel", RUNS[2], *store],
        ["compare", RUNS[0], RUNS[1], *store],
        ["compare", "latest~1", "latest", "--json", *store],
        ["show", PRODUCTION, *store],
        ["show", PRODUCTION, "--json", *store],
        ["show", "fresh/model/latest", *store],
        ["report", RUNS[0], "-o", page, *store],
        ["report", "-o", page, *store],
        ["lineage", PRODUCTION, *store],
        ["lineage", PRODUCTION, "--json", *store],
        ["lineage", PRODUCTION, "--html", page, *store],
        ["lineage", PRODUCTION, "--openlineage", *store],
        ["lineage", name, "--mermaid", *store],
        ["lineage", "--impacted-by", model[-1].key[:16] if model else "0" * 16, *store],
        ["checkpoint", file, "model", *store],
        ["gc", *store],
        ["gc", "--json", "--grace", "0", *store],
        ["promote", "fresh/other", name, *store],
        ["promote", "fresh/another", name, "--force", "--reason", "x", *store],
        ["rollback", PRODUCTION, *store],
        ["gc", "--delete", "--grace", "0", *store],
    ]


class Fault(AssertionError):
    """What must not be: a traceback, an exit code that is not documented, a wrong fact, a dead end."""


def call(argv: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command. Raises Fault on a traceback."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.main(argv)
    except SystemExit as error:
        code = int(error.code or 0)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        raise Fault(f"{argv[:3]}: traceback: {type(error).__name__}: {error} ({where})") from error
    if code not in ALLOWED:
        raise Fault(f"{argv[:3]}: exit code {code}")
    return code, out.getvalue(), err.getvalue()


def known_digests(folder: Path) -> str:
    """All text of the store's JSON, in which every digest that may be printed is found."""
    texts = [path.read_text(errors="replace") for path in sorted((folder / "store").rglob("*.json"))]
    return "\n".join([*texts, *map(str, sorted((folder / "store").rglob("*")))])


def require_true(argv: list[str], printed: str, known: str) -> None:
    """Raises Fault on a digest or an accuracy that no undamaged object has."""
    for accuracy in ACCURACY.findall(printed):
        if accuracy != TRUE:
            raise Fault(f"{argv[:3]}: accuracy {accuracy} is not true")
    for digits in HEX.findall(printed):
        if digits not in known:
            raise Fault(f"{argv[:3]}: {digits} is no digest of this store")


def check_store(full: Any) -> None:
    """What `doctor` looks at of a store."""
    from flows.checks.check import Check
    from flows.checks.new_data import new_data

    url = full.store.url
    for check in (
        Check("claims", lambda: check_claims(url)),
        Check("leftovers", lambda: left(url)),
        Check("new data", lambda: new_data(open_store(url))),
    ):
        for result in examine([check]):
            if "the check itself failed" in result.finding.said:
                raise Fault(f"doctor: {result.finding.said}")


def follow(error: ForgelineError, full: Any) -> None:
    """Do what the error says. Raises Fault where it says nothing that can be done."""
    store = ["--store", str(full.folder / "store")]
    text = str(error)
    back, other = re.search(r"forgeline rollback (\S+?)[`,. ]", text), re.search(r"forgeline promote (\S+) ", text)
    if back and refs.past(full.store, back[1]).entries and call(["rollback", back[1], *store])[0] == 0:
        return
    if other:
        model = full.manifests("finetune" if other[1].endswith("-weights") else "export")[0]
        name = f"{model.kind}/{model.key[:16]}"
        if call(["promote", other[1], name, "--force", "--reason", "as it says", *store])[0] == 0:
            return
    raise Fault(f"a dead end: {text}")


def go_on(full: Any) -> None:
    """Run the pipeline on the damaged store, and do what it says until it ends well. Raises Fault if it never does."""
    for _ in range(4):
        try:
            full.settle()
            break
        except ForgelineError as error:
            follow(error, full)
    else:
        raise Fault("it never ends well, whatever is done")
    store = ["--store", str(full.folder / "store")]
    for argv in (["plan", str(full.folder / "p.yaml"), *store], ["show", PRODUCTION, *store], ["status", *store]):
        code, _, err = call(argv)
        if code:
            raise Fault(f"after the run {argv[:2]} still says {err}")
    code, _, err = call(["gc", "--delete", "--grace", "0", *store])
    if code:
        raise Fault(f"after the run gc still says {err}")


def quick(monkeypatch: Any, folder: Path) -> None:
    """No pauses between two readings of what looks damaged, and runs' folders below `folder`."""
    monkeypatch.setenv("FORGELINE_HOME", str(folder / "home"))
    if hasattr(FileStore, "doubts"):
        monkeypatch.setattr(FileStore, "doubts", (0.0,))

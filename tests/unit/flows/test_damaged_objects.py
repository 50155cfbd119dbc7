"""Every class of object x every kind of damage x every command: no traceback, no wrong fact, no dead end.

FORGELINE_DAMAGES says how many (default 500), FORGELINE_DAMAGE_SEED repeats a sequence.
"""

from __future__ import annotations

import os
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from tasks.plan.plan import make_plan

SAMPLE = 22


@pytest.fixture(name="damaged", scope="module")
def damaged_fixture(load: Any) -> Any:
    return load("unit/damaged_store.py")


@pytest.fixture(name="full", scope="module")
def full_fixture(load: Any, damaged: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One of everything; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("full") / "house"
    folder.mkdir()
    return damaged.of_house(load)(folder)


def damage_one(damaged: Any, full: Any, folder: Path, kind: str, of: str, seed: int, only: int | None) -> list[str]:
    """Damage an object of a copy, run commands on it, and then the pipeline; what must not be, in a line each."""
    rng, found = random.Random(seed), []
    copy = full.copy(folder / str(seed))
    target = rng.choice(damaged.objects(copy.folder)[of])
    data = target.read_bytes()
    changed = damaged.DAMAGES[kind](data, rng)
    target.write_bytes(changed)
    what = f"seed {seed}, {kind} of {of}, {target.relative_to(copy.folder)}"
    known = damaged.known_digests(full.folder)
    argvs = damaged.commands(copy)
    shown = damaged.call(["show", damaged.PRODUCTION, "--store", str(full.folder / "store")])[1].splitlines()[1]
    for number in range(len(argvs)) if only is None else sorted(rng.sample(range(len(argvs)), only)):
        argv = argvs[number]
        try:
            code, out, _ = damaged.call(argv)
            if kind != "old, other type":
                damaged.require_true(argv, out, known)
            if code == 0 and argv[:2] == ["show", damaged.PRODUCTION] and "--json" not in argv and shown not in out:
                raise damaged.Fault("show: production is something else")
        except damaged.Fault as fault:
            found.append(f"{what}: {fault}")
    again = full.copy(folder / f"{seed}-again")
    (again.folder / target.relative_to(copy.folder)).write_bytes(changed)
    for look in (damaged.check_store, damaged.go_on):
        try:
            look(again)
        except Exception as fault:  # a traceback, or what `damaged_store.py` says must not be
            last = traceback.extract_tb(fault.__traceback__)[-1]
            found.append(
                f"{what}: {look.__name__}: {type(fault).__name__}: {fault} ({Path(last.filename).name}:{last.lineno})"
            )
    return found


def test_undamaged_it_does_what_it_should(
    damaged: Any, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = full.copy(tmp_path / "copy")
    damaged.quick(monkeypatch, copy.folder)
    known = damaged.known_digests(full.folder)
    codes = {}
    for argv in damaged.commands(copy):
        code, out, err = damaged.call(argv)
        codes[" ".join(argv[:2])] = (code, err)
        damaged.require_true(argv, out, known)
    assert {name: said for name, said in codes.items() if said[0]} == {}
    damaged.go_on(copy)


def test_a_damaged_manifest_is_planned_as_a_run_would_do_it(damaged: Any, full: Any, tmp_path: Path) -> None:
    copy = full.copy(tmp_path / "copy")
    key = next(line.key for line in make_plan(copy.pipeline(), copy.store) if line.node.name == "texts")
    path = copy.folder / f"store/artifacts/dataset/{key}/manifest.json"
    path.write_bytes(b"{")
    code, out, _ = damaged.call(["plan", str(copy.folder / "p.yaml"), "--store", str(copy.folder / "store")])
    assert (
        code == 0
        and "texts   dataset    run" in out
        and "its artifact is set aside and made again: the manifest" in out
    )
    copy.settle()
    assert copy.actions() <= {"reuse", "skip"}


def test_after_the_roll_back_that_a_damaged_production_asks_for_the_pipeline_runs(
    damaged: Any, full: Any, tmp_path: Path
) -> None:
    copy = full.copy(tmp_path / "copy")
    newest = damaged.objects(copy.folder)["production"][1]
    assert newest.parts[-2:] == ("production", "000002.json")
    newest.write_bytes(b"")
    damaged.go_on(copy)


@pytest.mark.parametrize("number", range(SAMPLE))
def test_damage_stops_nothing_and_misleads_nobody(
    damaged: Any, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A fixed small sample."""
    damaged.quick(monkeypatch, full.folder)
    kinds, classes = list(damaged.DAMAGES), list(damaged.objects(full.folder))
    kind, of = kinds[number % len(kinds)], classes[number % len(classes)]
    assert damage_one(damaged, full, tmp_path, kind, of, number, only=6) == []


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_every_class_of_object_with_every_kind_of_damage(
    damaged: Any, full: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged.quick(monkeypatch, full.folder)
    count = int(os.environ.get("FORGELINE_DAMAGES", "500"))
    seed = int(os.environ.get("FORGELINE_DAMAGE_SEED", random.SystemRandom().randrange(10**6)))
    with capsys.disabled():
        sys.stderr.write(f"FORGELINE_DAMAGE_SEED={seed} FORGELINE_DAMAGES={count}\n")
    pairs = [(kind, of) for kind in damaged.DAMAGES for of in damaged.objects(full.folder)]
    faults: list[str] = []
    for number in range(count):
        kind, of = pairs[number % len(pairs)]
        faults += damage_one(damaged, full, tmp_path, kind, of, seed * 100_000 + number, only=None)
    assert faults == [], "\n".join(faults[:50])

"""What a roll-back means afterwards, and promotions and roll-backs that die, or meet, between their two moves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra import refs
from infra.errors import UsageError
from infra.open_store import open_store
from infra.refs import RefConflict
from infra.store_file import FileStore
from tasks.release.promotion import refs as promotion
from tasks.release.promotion.refs import roll_back

REF, WEIGHTS = "fresh/production", "fresh/production-weights"


@pytest.fixture
def house(load: Any, tmp_path: Path) -> Any:
    return load("unit/house.py").House(tmp_path)


def reign(house: Any, *data: str) -> list[str]:
    """Run on one more file after another; the champion after each."""
    found = []
    for name in data:
        house.data(name)
        house.run()
        found.append(house.champion())
    return found


def weights(house: Any) -> str:
    """Digest of the release that the weights' ref belongs to."""
    entry = refs.get(house.store, WEIGHTS)
    assert entry
    shipped = [made.digest for made in house.manifests("export")]
    return next(one for one in shipped if house.manifests_by_stage(one) == entry.digest)


class Interfering(FileStore):
    """A store that does something just before an entry of one ref is written."""

    def __init__(self, folder: Path, ref: str, act: Callable[[], object]) -> None:
        super().__init__(folder)
        self.ref, self.act, self.acted = ref, act, False

    def create(self, path: str, data: bytes) -> bool:
        if path.startswith(f"refs/{self.ref}/") and not self.acted:
            self.acted = True
            self.act()
        return super().create(path, data)


class Killed(BaseException):
    """As SIGKILL: nobody catches it."""


def kill() -> None:
    raise Killed


def interfere(house: Any, ref: str, act: Callable[[], object]) -> None:
    house.store = Interfering(house.folder / "store", ref, act)


def plainly(house: Any) -> None:
    house.store = open_store(str(house.folder / "store"))


def test_a_roll_back_by_two_is_not_undone_though_the_champion_is_another(house: Any) -> None:
    first, _, third = reign(house, "first", "second", "third")
    roll_back(house.store, REF, 1, "")
    house.run()
    assert house.champion() == first, "the third beats the first as well, but somebody has decided"
    assert house.run() == [] and house.champion() == first
    (fourth,) = reign(house, "fourth")
    assert fourth not in (first, third) and house.input_of("evaluate", "champion") == [first]


def test_after_a_roll_back_the_one_that_came_back_needs_no_new_verdict(house: Any) -> None:
    first, second, _ = reign(house, "first", "second", "third")
    roll_back(house.store, REF, None, "")
    (house.folder / "data/third.txt").unlink()
    assert house.champion() == second and house.run() == []
    assert house.input_of("evaluate", "champion") == [first], "it is not judged against the one that was rolled back"


def test_roll_backs_go_further_back_each_time(house: Any) -> None:
    first, second, third = reign(house, "first", "second", "third")
    for expected in (second, first):
        roll_back(house.store, REF, None, "")
        assert house.champion() == weights(house) == expected
    with pytest.raises(UsageError, match=r"stood at nothing else before\n.* 3 \(export .*`--to N` goes to any"):
        roll_back(house.store, REF, None, "")
    roll_back(house.store, REF, 3, "it was the data after all")
    assert house.champion() == weights(house) == third
    for number, says in ((6, "at the artifact of entry 6 already"), (9, "has no entry 9")):
        with pytest.raises(UsageError, match=says):
            roll_back(house.store, REF, number, "")


@pytest.mark.parametrize("ref", [REF, WEIGHTS])
def test_a_promotion_killed_before_either_move_is_made_whole_by_the_next_run(house: Any, ref: str) -> None:
    (first,) = reign(house, "first")
    house.data("second")
    interfere(house, ref, kill)
    with pytest.raises(Killed):
        house.run()
    plainly(house)
    assert weights(house) == first, "nobody goes on from weights of which nothing was released"
    assert house.run() == []
    assert house.champion() == weights(house) != first


@pytest.mark.parametrize("ref", [REF, WEIGHTS])
def test_a_roll_back_killed_before_either_move_is_made_whole_by_the_same_command(house: Any, ref: str) -> None:
    first, _ = reign(house, "first", "second")
    interfere(house, ref, kill)
    with pytest.raises(Killed):
        roll_back(house.store, REF, None, "")
    plainly(house)
    house.run()
    roll_back(house.store, REF, None, "")
    assert house.champion() == weights(house) == first


@pytest.mark.parametrize("ref", [REF, WEIGHTS])
def test_a_promotion_that_meets_a_roll_back_leaves_weights_and_release_of_one(house: Any, ref: str) -> None:
    reign(house, "first", "second")
    house.data("third")
    other = open_store(str(house.folder / "store"))
    interfere(house, ref, lambda: roll_back(other, REF, 1, ""))
    with pytest.raises(RefConflict):
        house.run()
    plainly(house)
    assert house.champion() == weights(house)


@pytest.mark.parametrize("ref", [REF, WEIGHTS])
def test_two_runs_that_publish_the_same_release_at_once_move_each_ref_once(house: Any, ref: str) -> None:
    reign(house, "first")
    before = house.manifests("promote")
    house.data("second")
    interfere(house, ref, kill)
    with pytest.raises(Killed):
        house.run()
    plainly(house)
    other = open_store(str(house.folder / "store"))
    (newest,) = (manifest for manifest in house.manifests("promote") if manifest not in before)
    interfere(house, ref, lambda: promotion.publish(other, newest))
    house.run()
    plainly(house)
    assert house.champion() == weights(house)
    assert [refs.newest_number(house.store, name) for name in (REF, WEIGHTS)] == [2, 2]

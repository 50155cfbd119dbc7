"""An objective is found by lying in the folder of its domain; a folder that nobody has named becomes a domain."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tasks.objective
import tasks.objectives
from infra.errors import StageError
from tasks.objective import objective, objective_class, objective_names

FILE = '''
from typing import Literal
from tasks.objective import Objective

class Odour(Objective):
    """Which odour a sample has."""
    name: Literal["odour"] = "odour"

OBJECTIVE = Odour
'''


@pytest.fixture
def domain(tmp_path: Path) -> Iterator[Path]:
    """A folder of objectives beside ours, in which a test may write domains."""
    caches = (objective_class, tasks.objective._modules)
    tasks.objectives.__path__.append(str(tmp_path))
    try:
        for cache in caches:
            cache.cache_clear()
        yield tmp_path
    finally:
        tasks.objectives.__path__.remove(str(tmp_path))
        for cache in caches:
            cache.cache_clear()


def test_one_file_in_a_new_folder_is_an_objective_of_a_new_domain(domain: Path) -> None:
    (domain / "smell").mkdir()
    (domain / "smell/odour.py").write_text(FILE)
    assert "odour" in objective_names() and "causal_lm" in objective_names()
    assert objective("odour").name == "odour"


def test_what_objectives_share_and_read_with_is_none(domain: Path) -> None:
    (domain / "shared").mkdir()
    (domain / "shared/odours.py").write_text(FILE)
    (domain / "smell/inputs").mkdir(parents=True)
    (domain / "smell/inputs/samples.py").write_text(FILE)
    assert not {"odours", "samples", "inputs", "shared"} & {*objective_names()}
    with pytest.raises(StageError, match="unknown objective 'samples'"):
        objective_class("samples")

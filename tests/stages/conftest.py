"""Fixtures of the stage tier: tiny real inputs, made once a session; one thread, as the models are tiny too."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


def _beside(name: str) -> ModuleType:
    """A module of this folder; `tests/` is not a package."""
    full = f"forgeline_tests_stages_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).with_name(f"{name}.py"))
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


@pytest.fixture(scope="session")
def jobs() -> ModuleType:
    """`jobs.make_job(...)` and `jobs.artifact(...)`."""
    return _beside("jobs")


@pytest.fixture(scope="session")
def tiny() -> ModuleType:
    """`tiny.model(...)`, `tiny.lm_features(...)`: models and examples of a few kilobytes."""
    import torch

    torch.set_num_threads(1)
    return _beside("tiny")


@pytest.fixture(scope="session")
def pictures(tiny: ModuleType) -> ModuleType:
    """`pictures.model(...)`, `pictures.features(...)`, `pictures.Pictures()`: small convolutional nets and a ViT."""
    return _beside("pictures")


@pytest.fixture(scope="session")
def whole_way(jobs: ModuleType, tiny: ModuleType) -> ModuleType:
    """`whole_way.base(...)`, `whole_way.dataset(...)`, `whole_way.go(...)`: one objective through all stages."""
    return _beside("whole_way")


@pytest.fixture
def parity(jobs: ModuleType, tiny: ModuleType, tmp_path: Path, record_property: Callable[[str, object], None]) -> Any:
    """`parity(objective, features, fresh, ...)`: the loop's losses against a bare loop's."""
    return _beside("parity").Parity(jobs, tiny, tmp_path, record_property)


@pytest.fixture(scope="session")
def tiny_inputs(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `dataset/`, `tokenizer/` and `tokens/`: payloads as the data stages write them."""
    folder: Path = tiny.write_inputs(tmp_path_factory.mktemp("tiny"))
    return folder

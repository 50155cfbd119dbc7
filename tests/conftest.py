"""Fixtures every tier may use. Servers start when a test asks for them, once in a session."""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# A shared machine's clock says nothing about our code. CI tries the same examples each time, so that a change is judged
# by what it changed; new examples are tried on every developer's machine.
settings.register_profile("shared machine", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("shared machine")


def load(path: str) -> Any:
    """A helper module beside the tests, e.g. `load("e2e/seaweed.py")`: `tests/` is not a package."""
    name = "forgeline_tests_" + path.removesuffix(".py").replace("/", "_")
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(name="load", scope="session")
def load_fixture() -> Callable[[str], Any]:
    """`load` for tests."""
    return load


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running SeaweedFS (see `e2e/seaweed.py`): `.url(prefix)`, `.env`, `.bucket`."""
    server = load("e2e/seaweed.py").SeaweedFS(tmp_path_factory.mktemp("seaweed"))
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """API of a Prefect server for all tests of a file: starting one takes longer than a run."""
    from infra.platform import prefect_server

    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    try:
        yield prefect_server.up(home, port).api_url
    finally:
        prefect_server.down(home)

"""A month of a pipeline that keeps itself fresh, on real servers and with real kills: `make demo` shows it to a person."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.platform import prefect_server


@pytest.mark.month
def test_a_month(tmp_path: Path, load: Callable[[str], Any], seaweed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def say(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()

    for name, value in seaweed.env.items():
        monkeypatch.setenv(name, value)
    month = load("e2e/month.py").Month(tmp_path, seaweed, load("e2e/reviews.py"), say)
    try:
        month.play()
    finally:
        month.end_others()
        prefect_server.down(month.home)

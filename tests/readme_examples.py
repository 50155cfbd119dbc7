"""The code blocks of the README, and its example stage and objective registered as if they lived in their folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tasks.objective
import tasks.objectives.text
import tasks.stages
from tasks import stage

ROOT = Path(__file__).parents[1]


def blocks(language: str, page: str = "README.md") -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)


@contextmanager
def registered(folder: Path, page: str = "README.md") -> Iterator[None]:
    """Write each python block to the file its first line names, below `folder`, and let that folder count as ours."""
    for block in blocks("python", page):
        name = block.splitlines()[0].removeprefix("# ")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)
    packages = [tasks.stages, tasks.objectives, tasks.objectives.text]
    caches = (stage.stages, tasks.objective.objective_class, tasks.objective._modules)
    for package in packages:
        package.__path__.append(str(folder / package.__name__.replace(".", "/")))
    try:
        for cache in caches:
            cache.cache_clear()
        yield
    finally:
        for package in packages:
            package.__path__.pop()
        for cache in caches:
            cache.cache_clear()

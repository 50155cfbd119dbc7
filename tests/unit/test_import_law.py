"""The import law: flows -> tasks -> infra, Prefect in its place, no torch where a plan is made."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RANK = {"infra": 0, "tasks": 1, "flows": 2}
FILES = sorted(p for room in RANK for p in (ROOT / room).rglob("*.py"))


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_never_point_upwards(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    for name in imported(path):
        top = name.partition(".")[0]
        assert RANK.get(top, -1) <= RANK[room], f"{path.relative_to(ROOT)} imports {name}"
        if top == "prefect":
            assert room == "flows" or path.name == "prefect_task.py", f"{path.relative_to(ROOT)} imports Prefect"


def test_no_stage_names_an_objective() -> None:
    names = {p.stem for p in (ROOT / "tasks" / "objectives").glob("*.py")} - {"__init__"}
    assert names
    for path in (ROOT / "tasks" / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.name} names the objective {node.value}"


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.cli, tasks.plan.plan, tasks.pipeline.schema, infra.store\n"
        "tasks.pipeline.schema.schema()\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'wandb', 'prefect', 's3fs', 'onnxruntime', 'pyarrow', 'sklearn', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"

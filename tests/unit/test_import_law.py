"""The import law: flows -> tasks -> infra, down the floors of `tasks/`, without a circle; Prefect in its place, no torch
where a plan is made; what is known of texts only where texts are.

docs/architecture.md draws the rooms; `FLOORS` is the same list.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOORS: list[set[str]] = [
    {"infra"},
    {"stage"},
    {"losses"},
    {"metrics"},
    {"data"},
    {"processors"},
    {"objective"},
    {"models"},
    {"objectives"},
    {"training"},
    {"evaluation", "compression", "generation"},
    {"release"},
    {"stages"},
    {"pipeline"},
    {"plan"},
    {"run"},
    {"resume"},
    {"flows"},
]
"""Rooms from the ground up. A room imports from those below it, and not from others on its own floor."""
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for top in ("infra", "tasks", "flows")
    for path in sorted((ROOT / top).rglob("*.py"))
}
DOMAINS = {path.name for path in (ROOT / "tasks/objectives").iterdir() if path.is_dir()} - {"shared", "__pycache__"}
TEXT_WORDS = re.compile(
    r"tokenizer|input_ids|attention_mask|token_type_ids|position_ids|vocab_size|max_length", re.IGNORECASE
)
TEXT_ROOMS = (
    "tasks/objectives/text/",
    "tasks/generation/text/",
    "tasks/data/tokens/",
    "tasks/processors/tokenizer",
    "tasks/processors/token_probes.py",
    "tasks/processors/special_ids.py",
    "tasks/processors/given_tokenizer.py",
    "tasks/processors/padding.py",
    "tasks/objectives/shared/tokenized.py",
    "tasks/objectives/shared/encoder_decoder.py",
    "tasks/objectives/shared/target_texts.py",
    "tasks/objectives/shared/text_prompt.py",
    "tasks/objectives/shared/padding.py",
    "tasks/stages/tokenizer.py",
    "tasks/stages/pack.py",
    "tasks/stages/harness.py",
    "tasks/training/tuning/prompt_",
)
TEXT_LINES = 65
"""Lines outside the rooms of text that name what only texts have. The number may only fall."""


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if parts[0] == "tasks" and len(parts) > 1 else parts[0]


@cache
def imported(path: Path) -> frozenset[str]:
    """Every module that a file imports: inside functions and for type checkers, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= below or {node.module}
    return frozenset(found)


def arrows() -> Iterator[tuple[str, str]]:
    """(a module of ours, a module of ours that it imports)."""
    for module, path in MODULES.items():
        for other in imported(path) & MODULES.keys() - {module}:
            yield module, other


def circle(pairs: Iterable[tuple[str, str]]) -> list[str]:
    """A circle among these arrows, or nothing."""
    graph: dict[str, set[str]] = {}
    for begin, end in pairs:
        graph.setdefault(begin, set()).add(end)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_its_floor() -> None:
    rooms = {room_of(module) for module in MODULES if module != "tasks"}
    assert rooms == FLOOR_OF.keys()
    assert len([path for path in (ROOT / "tasks").iterdir() if path.is_dir() and path.name != "__pycache__"]) <= 21
    assert {path.name for path in (ROOT / "tasks").glob("*.py")} == {"__init__.py", "stage.py", "objective.py"}


def test_imports_never_point_upwards() -> None:
    upward = [
        f"{begin} imports {end}"
        for begin, end in arrows()
        if room_of(begin) != room_of(end) and FLOOR_OF[room_of(end)] >= FLOOR_OF[room_of(begin)]
    ]
    assert upward == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circle(arrows()) == []


def test_no_folders_of_a_room_import_each_other_in_a_circle() -> None:
    """Files directly in a room may stand above its folders (`flows/cli.py`) or below them (`training/settings.py`)."""
    folders = ((begin.rpartition(".")[0], end.rpartition(".")[0]) for begin, end in arrows())
    rooms = {begin.rpartition(".")[0] for begin in MODULES if begin.count(".") == 1 + begin.startswith("tasks.")}
    assert circle(pair for pair in folders if len({*pair} - rooms) == 2 and len({*map(room_of, pair)}) == 1) == []


def test_prefect_is_met_in_its_place_only() -> None:
    for module, path in MODULES.items():
        if any(name.partition(".")[0] == "prefect" for name in imported(path)):
            assert module.startswith("flows.") or module == "tasks.run.prefect_task", f"{module} imports Prefect"


def test_only_objectives_name_a_domain() -> None:
    named = {
        (begin, end)
        for begin, end in arrows()
        if any(end.startswith(f"tasks.objectives.{domain}.") for domain in DOMAINS) and room_of(begin) != "objectives"
    }
    assert not named
    kinds = {path.parent.name for path in (ROOT / "tasks/generation").glob("*/product.py")}
    assert kinds
    assert not {
        (begin, end)
        for begin, end in arrows()
        if any(end.startswith(f"tasks.generation.{kind}.") for kind in kinds) and room_of(begin) != "generation"
    }, "a stage asks `tasks/generation/kinds.py`"
    readers = {f"tasks.processors.{path.stem}" for path in (ROOT / "tasks/processors").glob("*.py")}
    texts = {name for name in readers if any(f"{name.replace('.', '/')}.py".startswith(room) for room in TEXT_ROOMS)}
    own = [
        (a, b)
        for a, b in arrows()
        if b in readers - texts - {"tasks.processors.given_files", "tasks.processors.processor"}
    ]
    assert {room_of(a) for a, _ in own} <= {"processors", "objectives", "objective"}, (
        "what reads one kind of data is the objective's"
    )


def test_no_domain_imports_another_nor_does_what_they_share() -> None:
    for begin, end in arrows():
        if begin.startswith("tasks.objectives.") and end.startswith("tasks.objectives."):
            assert end.split(".")[2] in (begin.split(".")[2], "shared"), f"{begin} imports {end}"


def test_what_only_texts_have_is_named_where_texts_are() -> None:
    lines = [
        f"{name}: {line.strip()}"
        for name in sorted(str(path.relative_to(ROOT)) for path in MODULES.values())
        if name.startswith("tasks/") and not name.startswith(TEXT_ROOMS)
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines()
        if TEXT_WORDS.search(line)
    ]
    assert len(lines) == TEXT_LINES, "Fewer: lower TEXT_LINES. More: ask the objective or its processor instead."


def test_no_stage_names_an_objective() -> None:
    names = {path.stem for path in (ROOT / "tasks/objectives").glob("*/*.py")} - {"__init__"}
    assert names
    for path in (ROOT / "tasks" / "stages").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert node.value not in names, f"{path.name} names the objective {node.value}"


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import sys, flows.cli, infra.open_store, tasks.plan.plan, tasks.pipeline.schema\n"
        "tasks.pipeline.schema.schema()\n"
        "heavy = {'torch', 'transformers', 'deepspeed', 'wandb', 'prefect', 's3fs', 'onnxruntime', 'pyarrow', 'sklearn', 'optuna'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["flows", "infra", "tasks"])
def test_the_top_level_names_belong_to_this_distribution_alone(name: str) -> None:
    from importlib.metadata import packages_distributions

    assert set(packages_distributions().get(name, ["forgeline"])) == {"forgeline"}


def test_the_map_in_the_docs_is_the_tree() -> None:
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| `(?:tasks/)?(\w+)/` \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(FLOOR_OF.keys() - {"stage", "objective"})
    diagram = re.sub(r'\[".*?"\]', "", page.partition("subgraph tasks\n")[2].partition("  end")[0])
    chains = [[set(step.split(" & ")) for step in line.strip().split(" --> ")] for line in diagram.splitlines()]
    for chain in chains:
        for above, below in zip(chain, chain[1:], strict=False):
            assert min(FLOOR_OF[room] for room in above) > max(FLOOR_OF[room] for room in below), (above, below)
    assert {room for chain in chains for step in chain for room in step} | {"infra", "flows"} == FLOOR_OF.keys()

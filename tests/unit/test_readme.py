"""What the README shows works: its pipeline, its commands, its links, the variables it names."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from flows import cli
from infra.open_store import open_store
from tasks.objective import objective, objective_names
from tasks.pipeline.load import load_pipeline
from tasks.plan.plan import make_plan
from tasks.stage import stages

ROOT = Path(__file__).parents[2]
SHOWING = ("README.md", "docs/objectives.md", "docs/compression.md")
PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("docs/*.md"))]


@pytest.fixture(scope="module")
def readme(load: Any) -> Any:
    return load("readme_examples.py")


def test_its_pipeline_and_its_example_stage_can_be_planned(
    readme: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELINE_STORE", str(tmp_path / "store"))
    pipeline, _, champion, extra = readme.blocks("yaml")
    data = yaml.safe_load(pipeline)
    file = tmp_path / "pipeline.yaml"
    file.write_text(pipeline)
    texts = [text for page in SHOWING for text in readme.blocks("yaml", page)]
    shown = {kind for kind in stages() if any(re.search(rf"\b{kind}: *(?:\{{|$)", text, re.M) for text in texts)}
    assert shown == set(stages()), "every kind of stage is shown"

    data["stages"] |= yaml.safe_load(champion) | yaml.safe_load(extra)
    data["stages"]["scratch"] = data["stages"]["teacher"]
    file.write_text(yaml.safe_dump(data))
    with readme.registered(tmp_path):
        lines = make_plan(load_pipeline(file), open_store(str(tmp_path / "store")))
    soup = next(line for line in lines if line.node.name == "soup")
    assert soup.node.needs == ("teacher", "scratch") and soup.action == "unknown"


def test_the_pipeline_of_the_objectives_page_is_one(readme: Any, tmp_path: Path) -> None:
    """Its objectives are those there are, its settings those of `finetune`, its fragments fit."""
    objectives, pipeline, *fragments = readme.blocks("yaml", "docs/objectives.md")
    data = yaml.safe_load(pipeline)
    for fragment in fragments:
        data["stages"] |= yaml.safe_load(fragment)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(data))
    assert load_pipeline(tmp_path / "pipeline.yaml").stages["chat"].params.objective.messages == "messages"
    for line in objectives.splitlines():
        assert objective(yaml.safe_load(line)["objective"]).name == "masked_lm"
    page = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(objective_names())


def test_the_pipeline_of_the_data_page_is_one(readme: Any, tmp_path: Path) -> None:
    (pipeline,) = readme.blocks("yaml", "docs/data.md")
    (tmp_path / "pipeline.yaml").write_text(pipeline)
    stages = load_pipeline(tmp_path / "pipeline.yaml").stages
    formats = {name: node.params.sources[0].format for name, node in stages.items()}
    assert formats == {
        "photos": "image",
        "described": "image",
        "words": "parquet",
        "reviews": "datasets",
        "saved": "datasets",
    }


def test_the_pipeline_of_the_compression_page_is_one_and_names_every_choice(readme: Any, tmp_path: Path) -> None:
    pipeline, *fragments = readme.blocks("yaml", "docs/compression.md")
    data = yaml.safe_load(pipeline)
    for fragment in fragments:
        data["stages"] |= yaml.safe_load(fragment)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(data))
    assert "small-half-lean-keep05-int8" in load_pipeline(tmp_path / "pipeline.yaml").stages
    page = (ROOT / "docs/compression.md").read_text(encoding="utf-8")
    choices = {"prune": "method", "quantize": "scheme"}
    for kind, field in choices.items():
        section = page.partition(f"\n## {kind}\n")[2].partition("\n## ")[0]
        named = set(re.findall(r"^\| `(\w+)` \|", section, re.M)) - {field}
        assert named == set(get_args(stages()[kind].params.model_fields[field].annotation))


def test_the_page_on_operating_says_what_there_is(readme: Any, tmp_path: Path) -> None:
    """Its sections are those of a pipeline file, its commands those of the command line."""
    data = yaml.safe_load((ROOT / "configs/nightly.yaml").read_text(encoding="utf-8"))
    for section in readme.blocks("yaml", "docs/operate.md"):
        data |= yaml.safe_load(section)
    (tmp_path / "pipeline.yaml").write_text(yaml.safe_dump(data))
    assert load_pipeline(tmp_path / "pipeline.yaml").deploy.watch
    commands = [line for block in readme.blocks("console", "docs/operate.md") for line in block.splitlines()]
    shown = [shlex.split(line, comments=True)[1:] for line in commands if line.startswith("forgeline ")]
    assert shown
    for arguments in shown:
        cli._parser().parse_args(arguments)


def test_its_commands_are_the_commands(readme: Any) -> None:
    commands = [line for block in readme.blocks("console") for line in block.splitlines()]
    shown = [shlex.split(line, comments=True)[1:] for line in commands if line.startswith("forgeline ")]
    for arguments in shown:
        cli._parser().parse_args(arguments)
    known = re.search(r"`forgeline (.*?)`", cli.__doc__ or "", re.DOTALL)
    assert known and {arguments[0] for arguments in shown} == {name.strip() for name in known[1].split("|")}
    targets = {line.split()[1] for line in commands if line.startswith("make ")}
    rules = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M))
    assert targets == {"run", "test"} and targets <= rules


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_points_to_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    tracked = set(
        subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout.split()
    )  # fmt: skip
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in target:
            assert str(((ROOT / page).parent / target).resolve().relative_to(ROOT)) in tracked, target
    for path in re.findall(r"`((?:flows|tasks|infra|tests|configs)/[\w/.-]+\.\w+)`", text):
        assert path in tracked or path in text.partition("## Add a stage")[2], path


def test_the_variables_it_names_are_read(readme: Any) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(FORGELINE_\w+)`", text))
    code = "".join(path.read_text() for room in ("infra", "tasks", "flows") for path in (ROOT / room).rglob("*.py"))
    used = set(re.findall(r"[\"'](FORGELINE_[A-Z_]+)[\"']", code))
    assert named == used

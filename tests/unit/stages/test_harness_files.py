"""harness: what a task file names lies in its folder, or its content would be in no key."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.errors import StageError
from tasks.stages import harness

INSIDE = """
task: members
dataset_path: json
dataset_kwargs: {data_files: {test: data/members.jsonl, train: [data/../data/members.jsonl]}}
process_results: !function metrics.score
doc_to_text: "/{{question}}/../"
"""


def listed(folder: Path, name: str, text: str) -> list[str]:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return [file.path for file in harness.sources(harness.Params(models=["m"], tasks=str(folder)))]


def test_files_of_the_folder_may_be_named(tmp_path: Path) -> None:
    assert listed(tmp_path, "members.yaml", INSIDE) == ["members.yaml"]
    assert len(listed(tmp_path, "deep/more.yaml", "include: ../members.yaml\ntask: more\n")) == 2
    assert len(listed(tmp_path, "broken.yaml", "a: [")) == 3, "the harness says what is wrong with it"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dataset_kwargs: {data_files: {test: /data/a.jsonl}}", "`data_files` names /data/a.jsonl, which lies outside"),
        ("dataset_kwargs: {data_files: [a.jsonl, ../a.jsonl]}", "`data_files` names ../a.jsonl"),
        ("dataset_kwargs: {data_dir: data/../../a}", "`data_dir` names data/../../a"),
        ("dataset_path: /scripts/a.py", "`dataset_path` names /scripts/a.py"),
        ("include: ../../common.yaml", "`include` names ../../common.yaml"),
        ("group: g\ntask: [{task: t, dataset_kwargs: {data_files: /a}}]", "`data_files` names /a"),
    ],
)
def test_files_elsewhere_are_refused_when_it_is_planned(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(StageError, match=f"tasks: deep/task.yaml: {says}"):
        listed(tmp_path, "deep/task.yaml", text + "\n")

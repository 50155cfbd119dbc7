"""Identity is pinned: an edit that is not meant to change what a stage makes leaves every key as it was.

`identity.json` holds the identity of every stage of every pipeline in `configs/`, and of one stage of every kind. A
released artifact is found by it, so a difference here makes users train again what they have. Where that is meant, the
stage's version is raised, the CHANGELOG says so, and the file is written again:

    python tests/unit/pipeline/test_identity.py
"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.artifacts import ArtifactRef
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.plan.resolved import resolve
from tasks.stage import stages

CONFIGS = Path(__file__).parents[3] / "configs"
PINNED = Path(__file__).with_name("identity.json")
EVERY_KIND = "every kind"


def identities(pipeline: Pipeline) -> dict[str, Any]:
    """The identity of every stage, where inputs have their stage's name for a digest and there are no source files."""
    made = {name: ArtifactRef(node.stage.kind, name, name, node.stage.makes) for name, node in pipeline.stages.items()}
    found = {}
    for node in pipeline.stages.values():
        refs = {
            item.stage: ArtifactRef("any", item.stage, item.stage, item.types[0]) for item in node.inputs if item.ref
        }
        found[node.name] = resolve(node, made | refs, sources=[]).identity
    return found


def every_kind(folder: Path) -> Pipeline:
    """The quickstart, and the stages it does without (`test_mutation.py`)."""
    spec = importlib.util.spec_from_file_location("mutation", Path(__file__).with_name("test_mutation.py"))
    assert spec and spec.loader
    mutation = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = mutation
    spec.loader.exec_module(mutation)
    file = folder / "every_kind.yaml"
    file.write_text((CONFIGS / "quickstart.yaml").read_text().replace("stages:\n", f"stages:\n{mutation.MORE}", 1))
    return load_pipeline(file)


def pinned_now(folder: Path) -> dict[str, dict[str, Any]]:
    found = {path.name: identities(load_pipeline(path)) for path in sorted(CONFIGS.glob("*.yaml"))}
    return {**found, EVERY_KIND: identities(every_kind(folder))}


def test_the_configs_are_all_pinned() -> None:
    pinned = json.loads(PINNED.read_text())
    assert sorted(pinned) == sorted([*(path.name for path in CONFIGS.glob("*.yaml")), EVERY_KIND])
    assert {identity["kind"] for pipeline in pinned.values() for identity in pipeline.values()} == stages().keys()


@pytest.mark.parametrize("name", sorted(json.loads(PINNED.read_text())) if PINNED.exists() else [])
def test_no_identity_changes_unnoticed(name: str, tmp_path: Path) -> None:
    pipeline = every_kind(tmp_path) if name == EVERY_KIND else load_pipeline(CONFIGS / name)
    assert json.loads(json.dumps(identities(pipeline))) == json.loads(PINNED.read_text())[name]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        now = pinned_now(Path(temporary))
    lines = [
        f'"{name}": {{\n'
        + ",\n".join(f'  "{stage}": {json.dumps(identity, sort_keys=True)}' for stage, identity in found.items())
        + "\n}"
        for name, found in now.items()
    ]
    PINNED.write_text("{\n" + ",\n".join(lines) + "\n}\n")

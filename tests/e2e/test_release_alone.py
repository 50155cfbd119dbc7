"""A promoted model where Forgeline is not: fresh virtual environments, the code of its page, the evaluation's answers.

`make proof-release`. Each environment holds what the page imports and no more. The texts are those of the test split, in
the batches of the evaluation: dynamic int8 scales activations by batch, so other batches are other numbers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from infra import refs
from infra.artifacts import Manifest
from infra.open_store import open_store
from infra.store import Store
from tasks.data.dataset.split import read_split
from tasks.evaluation.evaluated_model import BATCH
from tasks.models.card import read_card
from tasks.plan.resolved import latest_ref
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stage import InputArtifact

pytestmark = [pytest.mark.e2e, pytest.mark.release, pytest.mark.timeout(3600)]
ROOT = Path(__file__).parents[2]
PACKAGES = {"onnx": ("onnxruntime", "tokenizers", "numpy"), "model": ("transformers", "torch")}
ABSENT = {"onnx": ("tasks", "infra", "torch", "transformers", "onnx"), "model": ("tasks", "infra", "onnxruntime")}
ALONE = """import importlib.util, json

for name in {absent!r}:
    assert importlib.util.find_spec(name) is None, name + " is here too"
code, found = open("page.py").read(), []
for texts in json.load(open("texts.json")):
    names = {{}}
    exec(code.replace('["A text."]', repr(texts)), names)
    found += names["scores"].tolist()
json.dump(found, open("scores.json", "w"))
"""
ANY = [{"metric": "accuracy", "min": 0.0}]
SHOWN = {"teacher": "teacher", "int8": "half_int8", "float16": "half_float16"}


def tiny(folder: Path, chain: Any) -> Path:
    """`tiny.yaml`, with half precision beside int8, and its teacher promoted too."""
    file: Path = chain.write_project(folder)
    data = yaml.safe_load(file.read_text())
    stages = data["stages"]
    stages["half_int8"] = stages.pop("int8")
    return released(file, data, "onnx", "functions")


def minilm(folder: Path, chain: Any) -> Path:
    """Depth alone of `configs/compress_frontier.yaml`, few texts, few steps: what is proven needs no good model."""
    data = yaml.safe_load((ROOT / "configs/compress_frontier.yaml").read_text())
    half = data["stages"]["small"]["search"]["steps"][0]["choose"]["half"]["distill"]
    data["stages"] = stages = {name: data["stages"][name] for name in ("texts", "base", "teacher")}
    stages["half"] = {"distill": {**half, "teacher": "teacher"}}
    stages["half_onnx"] = {"export": {"model": "half"}}
    stages["half_int8"] = {"quantize": {"model": "half_onnx", "per_channel": True}}
    stages["texts"]["dataset"]["sources"][0]["files"] = str(ROOT / "data/sentiment/*.jsonl")
    stages["texts"]["dataset"]["label"]["max_per_class"] = 200
    stages["texts"]["dataset"]["split"] = {"by": "row", "validation": 0.1, "test": 0.3}
    stages["base"]["pretrained"]["folder"] = str(ROOT / "data/minilm")
    for name, kind in (("teacher", "finetune"), ("half", "distill")):
        del stages[name][kind]["epochs"]
        stages[name][kind]["max_steps"] = 12
    return released(folder / "minilm.yaml", data, "half_onnx", "texts")


def released(file: Path, data: dict[str, Any], graph: str, examples: str) -> Path:
    """Write the pipeline with every one of `SHOWN` evaluated on the test split of `examples`, gated and promoted."""
    stages = data["stages"]
    for name in ("scores", "gate", "release"):
        stages.pop(name, None)
    stages[graph]["export"]["data"] = examples
    stages["half_float16"] = {"quantize": {"model": graph, "scheme": "float16", "data": examples}}
    stages["scores"] = {
        "evaluate": {
            "models": list(SHOWN.values()),
            "data": f"{examples}.test",
            "resamples": 100,
            "latency": {"repeats": 2, "max_seconds": 0.1},
        }
    }
    for name, model in SHOWN.items():
        stages[f"gate_{name}"] = {"gate": {"scores": "scores", "candidate": model, "require": ANY}}
        stages[f"release_{name}"] = {"promote": {"model": model, "gate": f"gate_{name}", "ref": f"proof/{name}"}}
    file.write_text(json.dumps(data))
    return file


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Type of artifact -> the Python of a fresh environment that holds what its page imports."""
    made: dict[str, Path] = {}

    def make(type: str) -> Path:
        if type not in made:
            folder = tmp_path_factory.mktemp(type)
            uv = [str(Path(sys.executable).with_name("uv"))]
            subprocess.run([*uv, "venv", "-q", "--python", sys.executable, str(folder / "venv")], check=True)
            python = folder / "venv/bin/python"
            # uv reads none of pip's settings, and one of them may say where torch's CPU build lies.
            links = {"UV_FIND_LINKS": os.environ["PIP_FIND_LINKS"]} if "PIP_FIND_LINKS" in os.environ else {}
            install = ["pip", "install", "-q", "--python", str(python), "-c", str(ROOT / "constraints.txt")]
            subprocess.run([*uv, *install, *PACKAGES[type]], check=True, env={**os.environ, **links})
            made[type] = python
        return made[type]

    return make


@pytest.fixture(scope="module", params=[tiny, minilm], ids=lambda write: write.__name__)
def finished(request: pytest.FixtureRequest, load: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(name of a pipeline that ran to its end, its store, its dataset's stage)."""
    folder, chain = tmp_path_factory.mktemp(request.param.__name__), load("e2e/chain.py")
    file = request.param(folder, chain)
    chain.Forgeline(file, str(folder / "store"), folder / "home").end(timeout=3000).must(0)
    data = json.loads(file.read_text())
    examples = data["stages"]["scores"]["evaluate"]["data"].partition(".")[0]
    return data["name"], open_store(str(folder / "store")), examples


def latest(store: Store, pipeline: str, stage: str) -> Manifest:
    entry = refs.get(store, latest_ref(pipeline, stage))
    assert entry is not None
    manifest = store.manifest(entry.artifact.kind, entry.artifact.key)
    assert manifest is not None
    return manifest


@pytest.mark.parametrize("name", SHOWN)
def test_the_code_of_its_page_gives_the_evaluations_answers(
    finished: Any, environment: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    pipeline, store, examples = finished
    model, scores, data, release = (
        latest(store, pipeline, stage) for stage in (SHOWN[name], "scores", examples, f"release_{name}")
    )
    alone = Path(shutil.copytree(store.fetch(model), tmp_path / "alone"))
    (code,) = re.findall(r"```python\n(.*?)```", (store.fetch(release) / "README.md").read_text(encoding="utf-8"), re.S)
    assert code.count('["A text."]') == 1
    card, tokenizer = read_card(alone), load_tokenizer(alone)
    source = InputArtifact(examples, store.fetch(data), data)
    texts = read_split(source, "test", columns=("text",))["text"]
    features = card.objective.bound(Tokenizer(tokenizer, card.max_length)).examples(source, "test")
    order = np.argsort([card.objective.length(feature) for feature in features], kind="stable").tolist()
    batches = [[texts[i] for i in order[start : start + BATCH]] for start in range(0, len(order), BATCH)]
    for file, content in (
        ("page.py", code),
        ("texts.json", json.dumps(batches)),
        ("alone.py", ALONE.format(absent=ABSENT[model.type])),
    ):
        (alone / file).write_text(content, encoding="utf-8")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "FORGELINE_", "HF_"))}
    done = subprocess.run(
        [str(environment(model.type)), "alone.py"], cwd=alone, capture_output=True, text=True, env=kept
    )
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads((alone / "scores.json").read_text()))
    expected = load_file(store.fetch(scores) / "predictions.safetensors")[f"{SHOWN[name]}/logits"][order]
    assert found.shape == expected.shape and len(found) == len(texts) >= 10
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    gap = float(np.abs(found - expected).max())
    sys.stdout.write(f"{pipeline} {name}: {same} of {len(texts)} classes the same, max_abs_diff {gap:.3g}\n")
    assert same == len(texts) and gap < 1e-3

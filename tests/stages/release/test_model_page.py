"""README.md of a release: what it says is in the artifacts, and its code runs the model where Forgeline is not."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from transformers import AutoModel

from infra.open_store import open_store
from tasks.models.card import read_card
from tasks.models.runtime import load_runtime
from tasks.models.trained_for import trained_for
from tasks.processors.tokenizer import load_tokenizer
from tasks.stage import stages

WORDS = ("red", "green", "blue", "apple", "pear", "plum", "dog", "cat", "cow", "run", "sit", "eat")
TEXTS = ["red apple", "a cat sits on the blue plum and eats", "cow"]


@pytest.fixture(scope="module")
def chain(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """stage -> its committed artifact: a classifier, its graph in int8, their scores, verdict and releases."""
    folder = tmp_path_factory.mktemp("page")
    tokenizer = tiny.word_tokenizer(WORDS)
    base = tiny.model("bert", AutoModel, vocabulary=len(tokenizer))
    tiny.write_model(folder / "base", base, tokenizer, 32)
    rows = [{"text": f"{WORDS[i % 12]} {WORDS[i % 7]}", "label": "ab"[i % 2]} for i in range(60)]
    parts = {"train": rows[:40], "validation": rows[40:50], "test": rows[50:]}
    tiny.write_rows(folder / "texts", parts, labels=["a", "b"])
    store = open_store(str(folder / "store"))
    made: dict[str, Any] = {}
    card = {"sources": [{"source": "/home/ada/secret/texts.jsonl", "licence": "CC-BY-4.0"}]}

    def commit(name: str, kind: str, type: str, job: Any, inputs: dict[str, list[str]], **given: Any) -> None:
        source = {f: [{"kind": made[n].kind, "key": made[n].key} for n in names] for f, names in inputs.items()}
        made[name] = store.commit(
            kind=kind, type=type, key=f"{len(made):064x}", attempt="a", payload_dir=job, inputs=source,
            identity={"name": name}, **given,
        )  # fmt: skip

    (folder / "records").mkdir()
    (folder / "records/card.json").write_text(json.dumps(card))
    commit("base", "pretrained", "model", folder / "base", {})
    commit("texts", "dataset", "dataset", folder / "texts", {}, records_dir=folder / "records")

    def run(name: str, kind: str, params: dict[str, Any], **inputs: str | list[str]) -> None:
        from tasks.stage import InputArtifact

        stage = stages()[kind]
        named = {field: names if isinstance(names, list) else [names] for field, names in inputs.items()}
        given = {f: [InputArtifact(n, store.fetch(made[n]), made[n]) for n in names] for f, names in named.items()}
        job = jobs.make_job(folder / name, stage.params.model_validate(params), given, store=folder / "store")
        stage.run(job)
        commit(name, kind, stage.makes, job.output, named)

    learn = {"objective": "text_classification", "max_steps": 3, "global_batch_size": 8}
    run("teacher", "finetune", {"model": "base", "data": "texts", **learn}, model="base", data="texts")
    run("onnx", "export", {"model": "teacher"}, model="teacher")
    run("int8", "quantize", {"model": "onnx"}, model="onnx")
    measured = {"models": ["teacher", "int8"], "data": "texts", "resamples": 100, "latency": {"repeats": 2}}
    run("scores", "evaluate", measured, models=["teacher", "int8"], data="texts")
    require = [{"metric": "f1_macro", "max_drop": 1.0, "confidence": 0.95}]
    for name in ("int8", "teacher"):
        run(f"gate-{name}", "gate", {"scores": "s", "candidate": name, "against": "teacher" if name == "int8" else "int8",
                                     "require": require}, scores="scores")  # fmt: skip
        run(f"release-{name}", "promote", {"model": name, "gate": "g", "ref": "kinds/production"},
            model=name, gate=f"gate-{name}")  # fmt: skip
    return {"store": store, **made}


def page_of(chain: dict[str, Any], name: str) -> str:
    return (chain["store"].fetch(chain[f"release-{name}"]) / "README.md").read_text(encoding="utf-8")


def test_it_says_what_the_artifacts_say(chain: dict[str, Any]) -> None:
    page = page_of(chain, "int8")
    _, head, body = page.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["tags"] == ["forgeline", "text_classification", "onnx", "dynamic_int8"]
    assert metadata["license_name"] == "CC-BY-4.0"
    scores = json.loads((chain["store"].fetch(chain["scores"]) / "scores.json").read_text())
    value = scores["models"]["int8"]["metrics"]["f1_macro"]["value"]
    assert re.search(rf"\| F1 macro \| {value:.3f} \(", body), "the candidate's own figure"
    assert "On 10 examples" in body and "- labels: a, b" in body
    graph = onnx.load(str(chain["store"].fetch(chain["int8"]) / "model.onnx"))
    assert f"- format: onnx, opset {next(one.version for one in graph.opset_import if not one.domain)}" in body
    for name in ("int8", "onnx", "teacher", "base", "texts"):
        assert f"{chain[name].kind} `{chain[name].key[:12]}`, bytes `{chain[name].digest[:12]}`" in body
    assert "texts.jsonl: CC-BY-4.0" in body and "/home/ada" not in page
    verdict = json.loads((chain["store"].fetch(chain["gate-int8"]) / "verdict.json").read_text())
    assert f"- {verdict['requirements'][0]['sentence']}" in body


@pytest.mark.parametrize("name", ["teacher", "int8"])
def test_its_code_says_what_the_model_says_where_forgeline_is_not(chain: dict[str, Any], name: str) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", page_of(chain, name), re.S)
    assert len(code.splitlines()) <= 18
    assert 'A text."]' in code
    code = code.replace('["A text."]', repr(TEXTS))
    folder = chain["store"].fetch(chain[name])
    guard = "import sys\nsys.modules.update(dict.fromkeys(('flows', 'tasks', 'infra')))\n"
    guard += "import numpy as np, builtins\nprint = lambda x: builtins.print(np.asarray(getattr(x, 'logits', x).tolist()).tolist())\n"
    done = subprocess.run([sys.executable, "-c", guard + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = np.array(json.loads(done.stdout.strip().splitlines()[-1]))
    card, tokenizer = read_card(folder), load_tokenizer(folder)
    features = [{"input_ids": tokenizer(text)["input_ids"], "label": 0} for text in TEXTS]
    batch = trained_for(folder).collate(features)
    from tasks.stage import InputArtifact

    runtime = load_runtime(InputArtifact(name, folder, chain[name]))
    arrays = {key: value.numpy() for key, value in batch.items()}
    expected = card.objective.predictions(runtime.outputs(arrays), arrays)["logits"]
    assert expected.shape == (len(TEXTS), 2), "a row a text, as the evaluation has it"
    np.testing.assert_allclose(found, expected, atol=1e-4)

"""A pipeline whose stages are done by writing down what they were made of: no model, real keys, refs and manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra import refs
from infra.artifacts import Manifest
from infra.open_store import open_store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.plan.chosen_inputs import bound
from tasks.plan.plan import make_plan, resolve_in, resolve_refs
from tasks.plan.resolved import stored
from tasks.release.promotion.refs import promote

PIPELINE = """
name: fresh
stages:
  corpus: {dataset: {sources: [{files: "corpus.txt"}]}}
  words: {tokenizer: {data: corpus, vocab_size: 300}}
  tokens: {pack: {data: corpus, tokenizer: words, context: 8}}
  base: {pretrain: {data: tokens, objective: causal_lm, model: {type: gpt2}, max_steps: 1, learning_rate: 1e-3, global_batch_size: 1}}
  texts: {dataset: {sources: [{files: "data/*.txt"}]}}
  model: {finetune: {model: "ref:fresh/production-weights or base", data: texts, objective: text_classification, max_steps: 1, learning_rate: 1e-3, global_batch_size: 1}}
  onnx: {export: {model: model}}
  scores: {evaluate: {models: [onnx], champion: fresh/production, data: texts.test}}
  gate: {gate: {scores: scores, candidate: onnx, against: champion, require: [{metric: accuracy, max_drop: 0.1}]}}
  ship: {promote: {model: onnx, weights: model, gate: gate, ref: fresh/production}}
"""
NO = "onnx has accuracy 0.41; at least 0.9 is required: refused."


class House:
    """The pipeline, its data and its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "data").mkdir()
        (folder / "corpus.txt").write_text("a corpus")
        (folder / "p.yaml").write_text(PIPELINE)
        self.store = open_store(str(folder / "store"))
        self.data("first")

    def data(self, name: str) -> None:
        (self.folder / "data" / f"{name}.txt").write_text(f"text {name}")

    def pipeline(self) -> Pipeline:
        return load_pipeline(self.folder / "p.yaml", store=str(self.folder / "store"))

    def run(self, *, passes: bool = True) -> list[str]:
        """Run it; names of the stages that were not reused."""
        pipeline, ran = bound(self.pipeline(), self.store), list[str]()
        known = resolve_refs(pipeline, self.store)
        for node in pipeline.stages.values():
            resolved = resolve_in(self.store, node, known)
            manifest = stored(self.store, node.stage.kind, resolved)
            if manifest is None:
                ran.append(node.name)
                manifest = self.make(node, resolved, passes=passes)
            known[node.name] = manifest.ref
            if node.stage.refuses and not manifest.metrics["passed"]:
                break
            if node.name == "ship":
                release = json.loads((self.store.fetch(manifest) / "release.json").read_text())
                promote(self.store, release, f"release {manifest.digest[:16]}")
        return ran

    def make(self, node: Any, resolved: Any, *, passes: bool) -> Manifest:
        place = self.folder / "work" / resolved.key
        place.mkdir(parents=True, exist_ok=True)
        (place / "made.txt").write_text(resolved.key)
        if node.name == "gate":
            sentences = [{"passed": passes, "sentence": NO}, {"passed": True, "sentence": "size_mb is 1: passed."}]
            (place / "verdict.json").write_text(json.dumps({"requirements": sentences, **self.judged(resolved)}))
        if node.name == "ship":
            model, weights = resolved.inputs["model"][0], resolved.inputs["weights"][0]
            scores = next(
                m for m in self.manifests("evaluate") if m.digest == self.digest_of(resolved, "gate", "scores")
            )
            beaten = [item["digest"] for item in scores.inputs.get("champion", [])]
            judged = {"digest": next(iter(beaten), None), "challengers": [model.digest]}
            release = {"ref": "fresh/production", "model": vars(model), "weights": vars(weights)}
            (place / "release.json").write_text(json.dumps({**release, "champion": judged}))
        inputs: dict[str, list[dict[str, Any]]] = {}
        taken: dict[str, int] = {}
        for item in resolved.items:
            ref = resolved.inputs[item.field][taken.get(item.field, 0)]
            taken[item.field] = taken.get(item.field, 0) + 1
            inputs.setdefault(item.field, []).append({**vars(ref), "stage": item.stage, "split": item.split})
        return self.store.commit(
            kind=node.stage.kind, type=node.stage.makes, key=resolved.key, attempt="a", payload_dir=place,
            identity=resolved.identity, inputs=inputs, metrics={"passed": float(passes), **self.metrics(node)}, producer=self.producer(node),
        )  # fmt: skip

    def judged(self, resolved: Any) -> dict[str, Any]:
        """What else a verdict says."""
        return {}

    def metrics(self, node: Any) -> dict[str, float]:
        """What else a stage measured."""
        return {}

    def producer(self, node: Any) -> dict[str, Any]:
        """Who made a stage's artifact."""
        return {}

    def manifests(self, kind: str) -> list[Manifest]:
        found = [self.store.manifest(kind, key) for key in self.store.list(f"artifacts/{kind}")]
        return [manifest for manifest in found if manifest]

    def digest_of(self, resolved: Any, kind: str, field: str) -> str:
        gate = self.store.manifest(kind, resolved.inputs[kind][0].key)
        assert gate
        return str(gate.inputs[field][0]["digest"])

    def input_of(self, stage: str, field: str) -> list[str]:
        """Digests a stage's field had in the last run."""
        entry = next(m for m in self.manifests(stage) if m.key == self.plan()[stage])
        return [item["digest"] for item in entry.inputs.get(field, [])]

    def manifests_by_stage(self, shipped: str) -> str:
        """Digest of the weights behind a shipped model."""
        export = next(m for m in self.manifests("export") if m.digest == shipped)
        return str(export.inputs["model"][0]["digest"])

    def plan(self) -> dict[str, str]:
        return {line.node.stage.kind: line.key or "" for line in make_plan(self.pipeline(), self.store)}

    def actions(self) -> set[str]:
        return {line.action for line in make_plan(bound(self.pipeline(), self.store), self.store)}

    def champion(self) -> str:
        entry = refs.get(self.store, "fresh/production")
        return entry.digest if entry else ""

"""README.md of a release: what ships, how good it is, why it ships, what it was made of, how to load it.

It begins with the metadata block that model hubs read. Everything in it comes from the artifacts themselves: the
verdict, the scores it judged, and the manifests from the model down to its sources. Labels, sources and licences are
other people's words, and are written so that they stay text (`infra/markdown.py`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from infra.markdown import plain_text
from infra.terminal import one_line
from tasks.evaluation.champion import NAME, sentence
from tasks.models.card import ModelCard, read_card
from tasks.models.files import ONNX, shipped_bytes
from tasks.release.gate.slices import conditions
from tasks.release.readable import metric_title, number

if TYPE_CHECKING:
    from infra.artifacts import Manifest
    from infra.store import Store
    from tasks.stage import InputArtifact

    MadeOf = list[tuple[Manifest, list[tuple[str, str | None]]]]

TRANSFORMERS = """from transformers import {auto_class}

model = {auto_class}.from_pretrained(".").eval()
output = model(**batch)
"""
ONNXRUNTIME = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
outputs = session.run({names}, {{i.name: batch[i.name] for i in session.get_inputs()}})
"""


def model_page(store: Store, ref: str, model: InputArtifact, verdict: dict[str, Any], gate: Manifest) -> str:
    """The page, in Markdown. What the store no longer has is left out."""
    card = read_card(model.path)
    made_of = [(one, _sources(store, one)) for one in lineage(store, model.manifest)]
    lines = [*_metadata(card, made_of), "", f"# {ref}", "", *_about(model.path, card)]
    scores = _scores(store, gate)
    if scores is not None:
        lines += ["", "## How good it is", "", *_quality(scores, verdict)]
    lines += ["", "## Why it ships", "", *[f"- {plain_text(one['sentence'])}" for one in verdict["requirements"]]]
    lines += [f"- {plain_text(sentence(verdict[NAME]))}"] if NAME in verdict else []
    lines += ["", "## What it was made of", "", *_steps(made_of)]
    loader = _loader(model.path, card)
    if loader:
        lines += ["", "## How to load it", "", "In its folder, without Forgeline:", "", "```python", loader, "```"]
    return "\n".join(lines) + "\n"


def lineage(store: Store, manifest: Manifest) -> Iterator[Manifest]:
    """The artifact and all it was made of, each once, every one before what it was made of."""
    waiting, seen = [manifest], set()
    while waiting:
        one = waiting.pop(0)
        if one.digest in seen:
            continue
        seen.add(one.digest)
        yield one
        for field in sorted(one.inputs):
            found = (store.manifest(given["kind"], given["key"]) for given in one.inputs[field])
            waiting += [source for source in found if source is not None]


def _metadata(card: ModelCard, made_of: MadeOf) -> list[str]:
    licences = sorted({one_line(licence) for _, sources in made_of for _, licence in sources if licence})
    tags = ["forgeline", card.objective.name, *([card.format] if card.format else [])]
    facts: dict[str, Any] = {"library_name": "onnx" if card.format else "transformers"}
    facts["tags"] = [*tags, *([card.quantization] if card.quantization else [])]
    if licences:
        facts |= {"license": "other", "license_name": "; ".join(licences)}
    return ["---", yaml.safe_dump(facts, sort_keys=False, allow_unicode=True, width=math.inf).rstrip("\n"), "---"]


def _about(folder: Path, card: ModelCard) -> list[str]:
    facts = {
        "objective": ", ".join(f"{k}: {v}" for k, v in (card.settings or {}).items() if v is not None),
        "labels": ", ".join(card.labels or []),
        "tokens of a text": f"up to {card.max_length}" if card.max_length is not None else "",
        "format": f"{card.format}, {_opsets(folder)}" if card.format else "safetensors",
        "quantization": card.quantization or "",
        "size": f"{shipped_bytes(folder) / 1e6:.2f} MB",
    }
    return [f"- {name}: {plain_text(value)}" for name, value in facts.items() if value]


def _opsets(folder: Path) -> str:
    """The sets of operators a runtime needs to run the graph."""
    import onnx

    sets = onnx.load(str(folder / ONNX), load_external_data=False).opset_import
    return ", ".join(f"opset {one.version}" + (f" of {one.domain}" if one.domain else "") for one in sets)


def _scores(store: Store, gate: Manifest) -> dict[str, Any] | None:
    for given in gate.inputs.get("scores", []):
        manifest = store.manifest(given["kind"], given["key"])
        if manifest is not None:
            found: dict[str, Any] = json.loads((store.fetch(manifest) / "scores.json").read_text(encoding="utf-8"))
            return found
    return None


def _quality(scores: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
    """The candidate beside what it was compared with, on the same examples."""
    names = [verdict[role]["name"] for role in ("candidate", "against") if verdict.get(role)]
    shown = [name for name in names if name in scores["models"]]
    data, primary = scores["data"], scores["primary_metric"]
    place = plain_text(f"{data['stage']}.{data['split']}")
    lines = [
        f"On {data['n']:,} examples that no training saw ({place}), with 95% intervals:",
        "",
    ]
    lines += [f"| metric | {' | '.join(map(plain_text, shown))} |", "|-" * (len(shown) + 1) + "|"]
    others = tuple(conditions(scores))
    for metric in scores["models"][shown[0]]["metrics"] if shown else ():
        if metric.endswith(others) and not metric.startswith((f"{primary}[", f"{primary}_drop[")):
            continue
        values = [scores["models"][name]["metrics"].get(metric) or {} for name in shown]
        cells = [f"{number(v.get('value'))} ({number(v.get('low'))} to {number(v.get('high'))})" for v in values]
        lines.append(f"| {plain_text(metric_title(metric))} | {' | '.join(cells)} |")
    for cost, unit in (("size_mb", "MB"), ("parameters", "")):
        cells = [f"{number(scores['models'][name].get(cost))} {unit}".strip() for name in shown]
        lines.append(f"| {cost} | {' | '.join(cells)} |")
    return lines


def _steps(made_of: MadeOf) -> list[str]:
    lines = []
    for one, sources in made_of:
        lines.append(f"- {one.kind} `{one.key[:12]}`, bytes `{one.digest[:12]}`")
        lines += [
            f"  - {plain_text(source)}: {plain_text(licence or 'licence not stated')}" for source, licence in sources
        ]
    return lines


def _sources(store: Store, manifest: Manifest) -> list[tuple[str, str | None]]:
    """(what a dataset was read from, its licence), from its data card."""
    if manifest.type != "dataset":
        return []
    records = store.fetch_records(manifest)
    if records is None or not (records / "card.json").exists():
        return []
    found = json.loads((records / "card.json").read_text(encoding="utf-8"))["sources"]
    # Where a file lies on the machine that read it is nobody's business; what it is called may help.
    return [(str(one["source"]).rpartition("/")[2] or "source", one["licence"]) for one in found]


def _loader(folder: Path, card: ModelCard) -> str:
    """Code that runs the model without Forgeline; empty for encoder-decoders in ONNX, whose decoding is a loop."""
    objective = card.objective.bound(card.objective.load_processor(folder, card.max_length))
    reading, batch = objective.postprocessing_code, objective.processor.code(card.format) if objective.processor else ""
    if card.format is None:
        code = batch + "\n" + TRANSFORMERS.format(auto_class=objective.auto_class)
        return code + (f"logits = output.logits.detach()\n{reading}" if reading else "print(output)\n").rstrip()
    if "decoder_input_ids" in objective.inputs or not batch:
        return ""
    names = list(objective.outputs)
    code = batch + "\n" + ONNXRUNTIME.format(names=names)
    code += "logits = outputs[0]\n" if names == ["logits"] else f"{', '.join(names)} = outputs\n"
    return code + (reading or f"print({', '.join(names)})\n").rstrip()

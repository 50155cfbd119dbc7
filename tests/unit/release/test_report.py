"""The report of a run: complete, self-contained, safe, and still there when evidence is missing.

`quickstart_run` writes the evidence of a whole chain the size of the quickstart, by code, into a folder.
"""

# ruff: noqa: RUF001 (sample texts are easier to read unbroken; the report writes real minus signs)
from __future__ import annotations

import json
import math
import random
import re
import tempfile
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import CorruptArtifact
from tasks.release.evidence import Evidence, read_curve
from tasks.release.report.page import render_report
from tasks.release.report.views.data import data_views
from tasks.release.report.views.scores import scores_view

LABELS = ["asyncio", "email", "unittest", "xml", "http", "json", "logging", "multiprocessing", "importlib", "urllib"]

CHAIN: list[tuple[str, str, str, float, float, list[str]]] = [
    # name, kind, type, started_at, seconds, needs
    ("corpus", "dataset", "dataset", 4.1, 6.2, []),
    ("functions", "dataset", "dataset", 4.2, 4.9, []),
    ("tokenizer", "tokenizer", "tokenizer", 10.4, 2.3, ["corpus"]),
    ("tokens", "pack", "tokens", 12.8, 3.6, ["corpus", "tokenizer"]),
    ("base", "pretrain", "model", 16.5, 46.8, ["tokens"]),
    ("teacher", "finetune", "model", 63.4, 22.7, ["base", "functions"]),
    ("scratch", "finetune", "model", 63.5, 21.9, ["tokenizer", "functions"]),
    ("student", "distill", "model", 86.2, 14.4, ["teacher", "functions"]),
    ("lean", "prune", "model", 100.7, 8.8, ["student", "functions"]),
    ("onnx", "export", "onnx", 109.6, 7.1, ["lean"]),
    ("int8", "quantize", "onnx", 116.8, 1.2, ["onnx"]),
    (
        "scores",
        "evaluate",
        "scores",
        118.1,
        11.9,
        ["teacher", "scratch", "student", "lean", "onnx", "int8", "functions"],
    ),
    ("gate", "gate", "verdict", 130.1, 0.3, ["scores"]),
    ("release", "promote", "release", 130.5, 0.1, ["int8", "gate"]),
]

CONFIG = """\
name: stdlib-code
stages:
  base:
    pretrain: {data: tokens, objective: causal_lm, max_steps: 300}   # a <comment>
"""


class Folder:
    """A store reduced to what the report asks of it: evidence by stage name."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def load(self, artifact: dict[str, Any]) -> Evidence:
        home = self.root / artifact["key"]
        manifest = json.loads((home / "manifest.json").read_text())
        return Evidence(manifest, home / "payload", home / "records")

    def write(self, key: str, name: str, data: Any) -> None:
        path = self.root / key / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(data if isinstance(data, str) else json.dumps(data))


def write_curve(
    folder: Folder, stage: str, steps: int, start: float, end: float, every: int, tokens_per_second: float, seed: int
) -> None:
    """A loss curve that falls like a real one, with a validation loss now and then and a line torn by a kill."""
    noise = random.Random(seed)
    lines, checks = [], []
    for step in range(1, steps + 1):
        level = end + (start - end) * math.exp(-4.5 * step / steps)
        row = {
            "step": step,
            "loss": level + noise.gauss(0, 0.05 * level),
            "learning_rate": 4e-3 * min(1.0, step / 15) * (0.5 + 0.5 * math.cos(math.pi * step / steps)),
            "grad_norm": 1.0,
            "tokens_per_second": tokens_per_second * noise.uniform(0.95, 1.05),
            "seconds": step * 0.14,
            "a_key_from_a_later_version": True,
        }
        lines.append(json.dumps(row))
        if step % every == 0:
            checks.append(json.dumps({"step": step, "loss": level * 1.04 + 0.02, "accuracy": 0.5}))
    folder.write(stage, "records/train.jsonl", "\n".join(lines) + '\n{"step": 301, "lo')
    folder.write(stage, "records/validation.jsonl", "\n".join(checks))


def model_scores(f1: float, size: float, parameters: int, p50: float, kind: str, seed: int) -> dict[str, Any]:
    noise = random.Random(seed)

    def metric(value: float, half: float) -> dict[str, float]:
        return {"value": value, "low": value - half, "high": value + half * 0.9, "n": 694}

    counts = [[0] * len(LABELS) for _ in LABELS]
    for i in range(len(LABELS)):
        total = [131, 64, 120, 85, 43, 22, 51, 96, 52, 30][i]
        for _ in range(total):
            j = (
                i
                if noise.random() < f1
                else noise.choices(range(len(LABELS)), [abs(i - k) ** 0.1 for k in range(len(LABELS))])[0]
            )
            counts[i][j] += 1
    return {
        "type": kind,
        "metrics": {
            "accuracy": metric(f1 + 0.021, 0.024),
            "precision_macro": metric(f1 + 0.008, 0.029),
            "recall_macro": metric(f1 - 0.006, 0.028),
            "f1_macro": metric(f1, 0.027),
            "roc_auc_ovr": metric(min(f1 + 0.12, 0.99), 0.009),
            "cross_entropy": metric(2.05 * (1 - f1), 0.061),
        },
        "parameters": parameters,
        "size_mb": size,
        "latency_ms": {"1": {"p50": p50, "p95": p50 * 1.31}, "32": {"p50": p50 * 11.7, "p95": p50 * 13.2}},
        "peak_memory_mb": 212.4 + 6 * size,
        "confusion": counts,
        "labels": None,
    }


def sliced(model: dict[str, Any], short: float, typos: float) -> dict[str, Any]:
    """The model with its F1 on short texts, on long ones, and on texts with typos."""
    f1 = model["metrics"]["f1_macro"]["value"]
    found = {"[length=<80]": short, "[length=>=80]": f1, "[typos]": typos}
    named = {f"f1_macro{name}": {"value": v, "low": v - 0.1, "high": v + 0.1} for name, v in found.items()}
    return {**model, "metrics": model["metrics"] | named | {"f1_macro_drop[typos]": {"value": f1 - typos}}}


def quickstart_run(root: Path) -> tuple[dict[str, Any], Folder]:
    """A finished run of the whole chain and the folder its evidence lies in."""
    folder, stages = Folder(root), []
    for i, (name, kind, type_, started, took, needs) in enumerate(CHAIN):
        digest = f"{random.Random(name).getrandbits(256):064x}"
        artifact = {"kind": kind, "key": name, "digest": digest, "type": type_}
        reused = name in ("corpus", "tokenizer")
        action = "reuse" if reused else "resume" if name == "base" else "run"
        reason = {"reuse": "nothing changed", "resume": "killed at step 120 of 300"}.get(action, "never ran")
        stages.append({
            "name": name, "kind": kind, "action": action, "reason": reason, "seconds": 0.1 if reused else took,
            "started_at": started, "artifact": artifact, "metrics": {"examples": i}, "needs": needs, "error": None,
        })  # fmt: skip
        folder.write(name, "manifest.json", {
            "kind": kind, "type": type_, "key": name, "digest": digest,
            "payload": [{"path": "file", "size": 4_400_000 // (i + 1), "sha256": digest}],
            "inputs": {"data": [{"stage": n, "digest": f"{random.Random(n).getrandbits(256):064x}"} for n in needs]},
        })  # fmt: skip
    folder.write("functions", "payload/dataset.json", {"splits": {"train": 2400}, "labels": LABELS, "columns": ["id"]})
    folder.write("functions", "records/counts.json", {
        "splits": {"train": 2400, "validation": 310, "test": 694}, "warnings": [],
        "labels": {label: {"train": 240, "validation": 31, "test": 69} for label in LABELS},
        "steps": [
            {"step": "read", "rows_in": 211, "rows_out": 211, "dropped": {}},
            {"step": "label", "rows_in": 8000, "rows_out": 4100, "dropped": {"label not kept": 3900}, "changed": {}},
            {"step": "pii", "rows_in": 4100, "rows_out": 4100, "dropped": {}, "changed": {"email": 12, "ip": 3}},
            {"step": "near duplicates", "rows_in": 4100, "rows_out": 3404, "dropped": {"near duplicates": 696}},
        ],
    })  # fmt: skip
    folder.write("teacher", "records/mixture.json", {"tags": {"in_batch": 24}, "topic": {"in_batch": 8}})
    folder.write("teacher", "records/conflict.json", {
        "before": {"tasks": ["tags", "topic"], "norms": [2.0, 1.0], "cosine": [[1, 0.42], [0.42, 1]], "conflicting": 0.0},
        "after": {"tasks": ["tags", "topic"], "norms": [0.81, 0.3], "cosine": [[1, -0.13], [-0.13, 1]], "conflicting": 1.0},
    })  # fmt: skip
    folder.write("functions", "records/card.json", {
        "sources": [{"source": "${python:stdlib}", "licence": "PSF-2.0", "weight": 1.0, "files": 211, "bytes": 3_400_000}],
        "characters": {"train": [[65, 128, 900], [129, 256, 1100], [257, 512, 400]], "test": [[65, 128, 694]]},
        "examples": {"train": [{"id": "json/decoder.py::f", "text": "def f():\n    return '<b>not bold</b>'"}], "test": []},
    })  # fmt: skip
    folder.write("drift", "manifest.json", {"kind": "compare", "type": "drift", "key": "drift", "payload": []})
    folder.write("drift", "payload/drift.json", {
        "drifted": True, "alpha": 0.01, "looked_at": {"old": 1000, "new": 980},
        "differences": [
            {"name": "length", "size": 0.04, "p": 0.31, "told": "median 312 -> 320 characters", "drifted": False},
            {"name": "vocabulary", "size": 0.21, "p": 0.0002, "told": "24.1% of the words are new", "drifted": True},
        ],
    })  # fmt: skip
    stages.append({
        "name": "drift", "kind": "compare", "action": "run", "reason": "never ran", "seconds": 1.0, "started_at": 130.6,
        "artifact": {"kind": "compare", "key": "drift", "digest": "0" * 64, "type": "drift"}, "metrics": {"drifted": 1},
        "needs": ["functions"], "error": None,
    })  # fmt: skip
    write_curve(folder, "base", 300, 7.6, 3.98, 30, 15700, 1)
    folder.write(
        "base", "records/baselines.json", {"metric": "cross_entropy", "values": {"unigram": 6.27, "bigram": 3.89}}
    )
    folder.write("base", "records/samples.json", [
        {"prompt": "def read(self, size=-1):\n", "continuation": '    """Read and return up to size bytes.\n\n    If size is negative, read\n    """\n    if self._closed:\n        raise ValueError("I/O on closed file")\n'},
        {"prompt": "class Handler(", "continuation": "object):\n    def __init__(self, name=None):\n        self.name = name\n        self._lock = threading.RLock()\n"},
        {"prompt": "import os\nimport ", "continuation": "sys\nimport time\nfrom typing import <script>alert(1)</script>\n"},
    ])  # fmt: skip
    for name, first, last in (
        ("teacher", 2.3, 0.42),
        ("scratch", 2.31, 1.02),
        ("student", 2.0, 0.5),
        ("lean", 0.9, 0.55),
    ):
        write_curve(folder, name, 90, first, last, 15, 9100, len(name))
    folder.write("teacher", "records/baselines.json", {"metric": "f1_macro", "values": {"majority": 0.032}})
    folder.write("teacher", "records/samples.json", [
        {"text": "def _get_event_loop(stacklevel=3):\n    loop = _get_running_loop()\n    if loop is not None:\n        return loop", "truth": "asyncio", "prediction": "asyncio"},
        {"text": "def quote(string, safe='/'):\n    return string.replace('%', '%25')", "truth": "urllib", "prediction": "email"},
        {"text": "def dumps(self, obj):\n    return b'<' + obj + b'>'", "truth": "xml", "prediction": "json"},
    ])  # fmt: skip
    folder.write("scores", "payload/scores.json", {
        "objective": "text_classification", "primary_metric": "f1_macro", "greater_is_better": True,
        "data": {"stage": "functions", "split": "test", "n": 694}, "baselines": {"majority": 0.032},
        "slices": {"length": {"by": "text", "edges": [80.0], "min_examples": 30, "n": {"<80": 12, ">=80": 682}}},
        "perturbations": {"typos": {"noise": 0.05}},
        "models": {
            "teacher": sliced(model_scores(0.842, 4.18, 1_044_000, 3.42, "model", 1), 0.8, 0.7),
            "scratch": model_scores(0.713, 4.18, 1_044_000, 3.44, "model", 2),
            "student": model_scores(0.839, 3.01, 752_000, 1.83, "model", 3),
            "lean": model_scores(0.835, 2.74, 684_000, 1.71, "model", 4),
            "onnx": model_scores(0.835, 2.76, 684_000, 0.61, "onnx", 4),
            "int8": sliced(model_scores(0.833, 0.78, 684_000, 0.42, "onnx", 5), 0.81, 0.6),
        },
    })  # fmt: skip
    folder.write("scores", "records/misclassified.json", [
        {"id": "xml/sax/saxutils.py::quoteattr", "text": "def quoteattr(data, entities={}):\n    data = escape(data, entities)\n    return data",
         "truth": "xml", "predictions": {"teacher": "xml", "student": "xml", "lean": "email", "onnx": "email", "int8": "email"}},
        {"id": "http/cookies.py::_quote", "text": "def _quote(str):\n    if str is None or _is_legal_key(str):\n        return str",
         "truth": "http", "predictions": {"teacher": "email", "student": "urllib", "lean": "email", "onnx": "email", "int8": "http"}},
    ])  # fmt: skip
    folder.write("gate", "payload/verdict.json", {
        "passed": True, "candidate": {"name": "int8", "digest": "0" * 64}, "against": {"name": "teacher"},
        "requirements": [
            {"metric": "f1_macro", "rule": "max_drop", "limit": 0.02, "confidence": 0.95, "candidate": 0.833, "against": 0.842, "difference": -0.009,
             "bound": -0.0171, "passed": True,
             "sentence": "F1 macro of int8 is at most 0.02 below teacher: the difference is -0.009, at worst -0.0171 with 95% confidence."},
            {"metric": "size_mb", "rule": "max_ratio", "limit": 0.35, "candidate": 0.78, "against": 4.18, "difference": 0.187,
             "bound": 0.35, "passed": True, "sentence": "Size of int8 is 0.187 of teacher, at most 0.35 was allowed.",
             "slices": [{"passed": True, "sentence": "A slice has its own sentence."}], "not_judged": {}},
        ],
    })  # fmt: skip
    folder.write("release", "payload/release.json", {
        "ref": "stdlib-code/production", "model": {"kind": "quantize", "key": "a" * 64},
        "history": [
            {"at": "2026-11-24T03:22:00+00:00", "digest": "ab" * 32, "run": "20261124-032200-3fa9"},
            {"at": "2026-11-20T18:05:00+00:00", "digest": "cd" * 32, "run": "20261120-180501-77b0"},
        ],
    })  # fmt: skip
    run = {
        "run": "20261124-032200-3fa9", "pipeline": "stdlib-code", "status": "ok", "seconds": 131.2,
        "description": "Pretrain a small code model on Python's standard library, teach it to name the package, shrink it, ship it.",
        "started": "2026-11-24T03:22:00+00:00", "config": CONFIG, "stages": stages,
    }  # fmt: skip
    return run, folder


def failed_run(root: Path) -> tuple[dict[str, Any], Folder]:
    """The same run, had the distillation failed: nothing after it was reached."""
    run, folder = quickstart_run(root)
    lost = {"student", "lean", "onnx", "int8", "scores", "gate", "release"}
    for stage in run["stages"]:
        if stage["name"] in lost:
            stage.update(action="skipped", seconds=0.0, artifact=None, reason="needs student")
    student = next(s for s in run["stages"] if s["name"] == "student")
    student.update(action="failed", seconds=2.1, error={
        "type": "StageError", "what": "the student would have 6 layers, its teacher has 4",
        "where": "stages.student.layers", "hint": "Choose layers between 1 and 4.",
    })  # fmt: skip
    return {**run, "status": "failed", "seconds": 88.3}, folder


class Page(HTMLParser):
    """Elements, attributes and the text of a page; raises on a tag closed in the wrong order."""

    VOID = {"meta", "link", "input", "br", "hr", "img"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    run, folder = quickstart_run(tmp_path_factory.mktemp("evidence"))
    return render_report(run, folder.load)


def test_a_finished_run_tells_what_shipped_and_at_which_price(whole: str) -> None:
    text = Page(whole).text
    assert "int8 shipped as stdlib-code/production: 5.4× smaller and 8.1× faster than teacher" in text
    assert "F1 macro 0.833 (95% interval 0.806 to 0.857), −0.009 against teacher" in text
    assert "2 of 2 requirements met" in text


def test_every_stage_is_drawn_once_and_every_trained_one_has_a_curve(whole: str) -> None:
    page = Page(whole)
    drawn = [a for tag, a in page.tags if tag == "g" and (a.get("class") or "").startswith("stage ")]
    assert len(drawn) == len(CHAIN) + 1, "the chain and the comparison"
    labels = [a.get("aria-label") or "" for tag, a in page.tags if tag == "svg"]
    assert [x for x in labels if x.startswith("Loss of")] == [
        f"Loss of {n} over optimizer steps" for n in ("base", "teacher", "scratch", "student", "lean")
    ]
    assert sum(x.startswith("Confusion matrix") for x in labels) == 6
    assert "unigram" in page.text
    assert "bigram" in page.text


def test_columns_and_pictures_of_a_data_card_are_shown_and_nothing_else_passes_for_a_picture() -> None:
    columns = [
        {
            "column": "photo",
            "type": "binary",
            "of": "bytes",
            "missing": 2,
            "least": 880.0,
            "most": 880.0,
            "mean": 880.0,
        },
        {
            "column": "price",
            "type": "float32",
            "of": "values",
            "missing": 0,
            "least": -1.5,
            "most": 2000.0,
            "mean": 10.25,
        },
        {"column": "new", "type": "bool", "of": "values", "missing": 1, "least": None, "most": None, "mean": None},
    ]
    pictures = ["data:image/png;base64,AAAA", "data:image/svg+xml;base64,AAAA", "javascript:alert(1)", 3]
    card = {"columns": columns, "examples": {"train": [{"id": "a", "text": "", "label": "bag", "pictures": pictures}]}}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "card.json").write_text(json.dumps(card))
        (view,) = data_views({"goods": Evidence({}, records=Path(folder))}, [])
    assert [(line["text"], line["missing"]) for line in view["columns"]] == [
        ("880 bytes", "2"), ("\N{MINUS SIGN}1.500 to 2,000, mean 10.25", "0"), ("", "1"),
    ]  # fmt: skip
    assert (view["examples"][0]["pictures"], view["examples"][0]["label"]) == (pictures[:1], "bag")
    assert view["lengths"] is None


def test_mistakes_show_their_pictures_and_nothing_else_passes_for_one(tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)
    largest = "data:image/jpeg;base64," + "A" * (4 * -(-(64 << 10) // 3))
    given = [largest, largest + "AAAA", "data:image/svg+xml;base64,AAAA", "https://example.org/a.png",
             'data:image/png;base64,AAAA" onerror="x', 3, None]  # fmt: skip
    rows = [
        {"id": f"<{i}>", "text": "", "truth": "a", "predictions": {"m": "b"}, "picture": p} for i, p in enumerate(given)
    ]
    folder.write("scores", "records/misclassified.json", rows)
    page = render_report(run, folder.load)
    assert page.count("<img") == page.count(f'<img src="{largest}" alt="a" title="&lt;0&gt;">') == 1
    assert "onerror" not in page and "example.org/a.png" not in page and "svg+xml" not in page
    assert not Page(page).open


def test_metrics_of_single_classes_do_not_become_columns_and_those_of_ranks_do() -> None:
    model = model_scores(0.8, 4.0, 1000, 3.0, "model", 1)
    model["metrics"] |= {f"f1@{label}": {"value": 0.5} for label in LABELS} | {"recall@10": {"value": 0.9}}
    scores = {"primary_metric": "f1_macro", "models": {"teacher": model}}
    view = scores_view("scores", scores, LABELS, None)
    assert view is not None and view.quality.columns[0] == "F1 macro"
    assert len(view.quality.columns) == 7 and view.quality.columns[-1] == "Recall@10"


def test_slices_and_changed_texts_stand_beside_models_and_become_no_columns(whole: str) -> None:
    text = Page(whole).text
    start = text.index("Slices and changed examples")
    table = text[text.index("Examples teacher", start) : text.index("What each model costs")]
    assert table.startswith("Examples teacher scratch student lean onnx int8 all 694 examples of functions.test 0.842")
    assert "length = <80 12 examples, too few to be judged 0.800 0.700 to 0.900" in table
    assert "0.810 0.710 to 0.910 +0.010" in table, "int8 on short texts, beside the first model"
    assert "typos examples changed 0.700 0.600 to 0.800 −0.142 to unchanged" in table
    assert "0.600 0.500 to 0.700 −0.233 to unchanged" in table
    assert "[" not in text[text.index("How good each model is") : start], "no column of its own"
    assert "A slice has its own sentence." in text


def test_tasks_that_pull_apart_are_told(whole: str) -> None:
    section = whole.partition("Do the tasks of teacher pull together?")[2].partition("</section>")[0]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", section))
    assert "1 of 1 pair of tasks in conflict after the training, 0 before it" in text
    assert "tags 24 0.810 −0.13 0.42 topic 8 0.300 −0.13 0.42" in text
    assert section.count('class="no"') == 2


def test_data_cards_and_drift_are_shown(whole: str) -> None:
    for said in (
        "The data: functions",
        "label not kept 3,900",
        "changed: email 12, ip 3",
        "PSF-2.0",
        "json/decoder.py::f",
        "&lt;b&gt;not bold&lt;/b&gt;",
        "drift: the data have drifted",
        "24.1% of the words are new",
    ):
        assert said in whole, said
    assert whole.count("The data: ") == 1, "a dataset without evidence has no card"


def test_the_page_needs_nothing_but_itself(whole: str) -> None:
    page = Page(whole)
    assert not page.open
    assert not [t for t, _ in page.tags if t in ("script", "img", "iframe", "object")]
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:,") == "data:,"
        assert not [name for name in attributes if name.startswith("on")]
    assert "url(" not in whole
    assert "@import" not in whole
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_same_run_renders_to_the_same_bytes(whole: str, tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)
    assert render_report(run, folder.load) == whole


HOSTILE = "</style></title><script>alert(1)</script>\"'><img src=x onerror=alert(1)>&{{7*7}}"


def test_text_from_data_cannot_become_markup(tmp_path: Path) -> None:
    """Names, labels, samples, reasons, errors, metrics, refs: each place a stranger's text can reach."""
    run, folder = quickstart_run(tmp_path)
    run.update(pipeline=HOSTILE, description=HOSTILE, config=HOSTILE, status=HOSTILE, run=HOSTILE, started=HOSTILE)
    renamed = {s["name"]: f"{s['name']}{HOSTILE}" for s in run["stages"]}
    for stage in run["stages"]:
        stage.update(name=renamed[stage["name"]], kind=HOSTILE, reason=HOSTILE, action=HOSTILE)
        stage["needs"] = [renamed[n] for n in stage["needs"]]
        stage["error"] = {"type": HOSTILE, "what": HOSTILE, "where": HOSTILE, "hint": HOSTILE}
        stage["warnings"] = [HOSTILE]
    folder.write("functions", "payload/dataset.json", {"labels": [HOSTILE] * len(LABELS)})
    scores = {"primary_metric": HOSTILE, "models": {HOSTILE: {
        "type": HOSTILE, "metrics": {HOSTILE: {"value": 1.0, "low": 0.5, "high": 1.5}}, "size_mb": 1.0,
        "latency_ms": {HOSTILE: {"p50": 1.0}}, "confusion": [[1, 2], [3, 4]],
    }}, "baselines": {HOSTILE: 0.5}, "data": {"stage": HOSTILE, "split": HOSTILE}}  # fmt: skip
    folder.write("scores", "payload/scores.json", scores)
    folder.write(
        "gate",
        "payload/verdict.json",
        {"candidate": HOSTILE, "requirements": [{"sentence": HOSTILE, "bound": HOSTILE}]},
    )
    folder.write("release", "payload/release.json", {"ref": HOSTILE, HOSTILE: HOSTILE, "history": [{HOSTILE: HOSTILE}]})
    folder.write("base", "records/baselines.json", {HOSTILE: 4.0})
    folder.write("base", "records/samples.json", [{"prompt": HOSTILE, "continuation": HOSTILE}, {HOSTILE: HOSTILE}])
    page = Page(render_report(run, folder.load))
    assert not page.open
    assert not [t for t, _ in page.tags if t in ("script", "img")]
    assert sum(t == "style" for t, _ in page.tags) == 1
    assert not [n for _, a in page.tags for n in a if n.startswith("on")]
    assert "49" not in re.findall(r"&(\d+)", page.text)


def test_what_stages_warn_of_stands_on_the_page(tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)
    assert "Warnings" not in Page(render_report(run, folder.load)).text
    run["stages"][1]["warnings"] = ["two labels differ in spelling alone"]
    page = render_report(run, folder.load)
    assert f"<li><b>{run['stages'][1]['name']}</b>: two labels differ in spelling alone</li>" in page


def test_a_failed_run_puts_the_error_and_its_hint_first(tmp_path: Path) -> None:
    run, folder = failed_run(tmp_path)
    text = Page(render_report(run, folder.load)).text
    assert text.index("student failed") < text.index("the student would have 6 layers, its teacher has 4")
    assert text.index("What to do Choose layers between 1 and 4.") < text.index("What ran")
    assert "student failed, so nothing shipped." in text
    assert "How good each model is" not in text


def test_a_refusal_names_the_requirement_that_was_not_met(tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)
    verdict = json.loads((tmp_path / "gate/payload/verdict.json").read_text())
    verdict["passed"] = verdict["requirements"][1]["passed"] = False
    folder.write("gate", "payload/verdict.json", verdict)
    run["status"] = "refused"
    run["stages"][-1].update(action="skipped", artifact=None)
    run["stages"][-2].update(action="refused")
    text = Page(render_report(run, folder.load)).text
    assert "int8 was refused by the gate, so nothing shipped: 5.4× smaller" in text
    assert "1 of 2 requirements met" in text
    assert "The gate refused" in text


def test_a_frontier_shows_every_candidate_and_which_was_chosen(tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)
    verdict = json.loads((tmp_path / "gate/payload/verdict.json").read_text())
    costs = {"tiny": (0.5, False, True), "int8": (0.78, True, True), "lean": (3.1, True, False)}
    verdict["candidates"] = [
        {"name": name, "cost": cost, "passed": passed, "on_front": front}
        for name, (cost, passed, front) in costs.items()
    ]
    folder.write("gate", "payload/verdict.json", {**verdict, "smallest": "size_mb"})
    text = Page(render_report(run, folder.load)).text
    start = text.index("The smallest that is good enough")
    assert text[start:].startswith(
        "The smallest that is good enough Candidate Size MB Outcome Pareto front "
        "tiny 0.500 refused on it int8 0.780 chosen on it lean 3.100 passed"
    ), text[start : start + 200]


def test_a_screen_is_told_and_is_not_what_shipped(tmp_path: Path) -> None:
    """A refused gate that others wait for, before the one of the release, with scores of its own."""
    run, folder = quickstart_run(tmp_path)
    scores = json.loads((tmp_path / "scores/payload/scores.json").read_text())
    scores["models"] = {name: scores["models"][name] for name in ("teacher", "scratch")}
    verdict = json.loads((tmp_path / "gate/payload/verdict.json").read_text())
    verdict |= {"passed": False, "candidate": {"name": "scratch"}}
    verdict["requirements"] = [{**verdict["requirements"][0], "passed": False, "sentence": "scratch fell too far."}]
    for name, kind, type, file, data in (
        ("looked", "evaluate", "scores", "scores.json", scores),
        ("screen", "gate", "verdict", "verdict.json", verdict),
    ):
        folder.write(name, f"payload/{file}", data)
        folder.write(name, "manifest.json", {})
        artifact = {"kind": kind, "key": name, "digest": "0" * 64, "type": type}
        needs = ["teacher", "scratch"] if type == "scores" else ["looked"]
        run["stages"].insert(-5, {"name": name, "kind": kind, "action": "run", "artifact": artifact, "needs": needs})
    run["stages"][-5]["needs"].append("screen")
    text = Page(render_report(run, folder.load)).text
    assert "int8 shipped as stdlib-code/production: 5.4× smaller" in text
    assert "failed scratch fell too far." in text
    assert text.count("How good each model is") == 1 and text.count("The gate ") == 1


@pytest.mark.parametrize("damage", ["{", "[]", "null", "3", '{"models": {"a": {}}}', '{"models": 3}', "\x00\xff"])
def test_damaged_evidence_never_stops_the_report(tmp_path: Path, damage: str) -> None:
    run, folder = quickstart_run(tmp_path)
    for name in ("scores/payload/scores.json", "gate/payload/verdict.json", "release/payload/release.json",
                 "functions/payload/dataset.json", "base/records/samples.json", "base/records/baselines.json",
                 "base/records/train.jsonl", "base/records/validation.jsonl",
                 "scores/records/misclassified.json"):  # fmt: skip
        (tmp_path / name).write_text(damage)
    assert "What ran" in render_report(run, folder.load)


JUNK = st.sampled_from(
    [None, 3, -1.5, float("nan"), 1e308, 10**30, "", "text", [], [1], [[1, 2]], {}, {"a": None}, True]
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [(*at, key) for key, _ in inner] + [p for key, item in inner for p in paths(item, (*at, key))]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_wrong_value_anywhere_never_stops_the_report(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The evidence of other versions and other hands: any value of any file may be something else."""
    root = tmp_path_factory.mktemp("junk")
    run, folder = quickstart_run(root)
    for name in ("scores/payload/scores.json", "gate/payload/verdict.json", "release/payload/release.json",
                 "functions/payload/dataset.json", "base/records/samples.json", "int8/manifest.json",
                 "scores/records/misclassified.json"):  # fmt: skip
        content = json.loads((root / name).read_text())
        if name.endswith("scores.json"):
            content["models"] = {
                m: {**content["models"][m], "confusion": [[5, 1], [0, 4]]} for m in ("teacher", "int8")
            }
        *way, last = data.draw(st.sampled_from(paths(content)))
        holder = content
        for key in way:
            holder = holder[key]
        holder[last] = data.draw(JUNK)
        (root / name).write_text(json.dumps(content))
    assert not Page(render_report(run, folder.load)).open


def test_what_the_store_lost_is_named_in_a_note(tmp_path: Path) -> None:
    run, folder = quickstart_run(tmp_path)

    def load(artifact: dict[str, Any]) -> Evidence:
        if artifact["key"] == "scores":
            raise CorruptArtifact("scores.json differs from its manifest", kind="evaluate", key="scores")
        if artifact["key"] == "base":
            raise FileNotFoundError("gone")
        return folder.load(artifact)

    text = Page(render_report(run, load)).text
    assert "scores: its artifact could not be read: scores.json differs from its manifest" in text
    assert "base: its artifact could not be read: gone" in text


def test_an_empty_record_is_a_page_too() -> None:
    def load(artifact: dict[str, Any]) -> Evidence:
        raise AssertionError("nothing to load")

    assert "interrupted" in Page(render_report({"run": "r", "status": "interrupted", "stages": []}, load)).text


def test_a_resumed_curve_keeps_the_steps_that_lived_on(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 5.0}, {"step": 2, "loss": 9.0}, {"step": 2, "loss": 4.0}, {"step": 2, "validation_loss": 4.2},
            {"step": 3, "loss": float("nan")}]  # fmt: skip
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows) + '{"step": 4, "loss": 3')
    curve = read_curve(tmp_path)
    assert curve is not None
    assert curve.train == [(1, 5.0), (2, 4.0)]
    assert curve.validation == [(2, 4.2)]

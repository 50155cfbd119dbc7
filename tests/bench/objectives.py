"""`make objectives`: every objective through every stage with every family of models that has a head for it.

python -m tests.bench.objectives [--folder FOLDER] [CELL ...]

A cell is a config and a family, `sentiment/bert`. As many run at a time as there are cores, a thread each, in one store:
what they share is made once, and a killed command goes on where it was. What was measured goes to
docs/benchmarks-objectives.json, a cell that was measured again replaces itself, and the page is made of that file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from infra.open_store import open_store
from infra.store import Store
from tests.bench import machine

ROOT = Path(__file__).parents[2]
PAGE, FIGURES = ROOT / "docs/benchmarks-objectives.md", ROOT / "docs/benchmarks-objectives.json"
REFUSED = 4
THREADS = "execution.default.threads=1"
STAGES = ("teacher", "student", "onnx", "int8")
SHAPE = "hidden_size: 128, num_hidden_layers: 2, num_attention_heads: 4"
ENCODERS, DECODERS = ("bert", "roberta", "ernie"), ("gpt2", "llama")
ALL = (*ENCODERS, *DECODERS, "t5")
WIDTH = {"gpt2": "n_inner: 512", "llama": "intermediate_size: 320"}


@dataclass(frozen=True)
class Config:
    """A file of configs/: the objective as the table names it, its families, where its examples come from.

    stages: of a family, the stages that stand in the table's columns, where they are not called so.
    """

    objective: str
    families: Sequence[str]
    data: str
    stages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


CONFIGS = {
    "causal-lm": Config("causal_lm", DECODERS, "real: the standard library's functions"),
    "chat": Config(
        "causal_lm of conversations", DECODERS, "derived: questions from a template, answers real docstrings"
    ),
    "masked-lm": Config("masked_lm", ENCODERS, "real: the standard library's functions"),
    "denoising": Config("denoising", ("t5",), "real: the standard library's functions"),
    "translation": Config("seq2seq", ("t5",), "real: English and German names (iso-codes)"),
    "sentiment": Config("text_classification", ALL, "real: tweets, reviews, editorials rated by people"),
    "spam": Config("text_classification", ("bert", "llama"), "real: SpamAssassin's mails"),
    "rating": Config("text_classification, regression", ("bert", "llama"), "real: the same texts, mean ratings"),
    "parts-of-speech": Config("token_classification", (*ALL, "minilm"), "real: the Brown corpus, tagged by hand"),
    "questions": Config("question_answering", (*ENCODERS, *DECODERS), "derived: real functions, answers from `ast`"),
    "search": Config("sentence_embedding", (*ENCODERS, *DECODERS, "minilm"), "real: docstrings and their functions"),
    "minilm": Config("text_classification", ("minilm",), "real: 1,500 of the rated texts"),
    "image-classification": Config(
        "image_classification",
        ("resnet", "vit"),
        "real: Fashion-MNIST, 700 pictures of each class to learn from",
        {
            "resnet": {"base": "resnet", "teacher": "finetuned", "student": "narrow", "gate": "judged"},
            "vit": {
                "base": "vit",
                "teacher": "taught",
                "student": "shallow",
                "onnx": "vit-onnx",
                "int8": "vit-int8",
                "gate": "vit-judged",
            },
        },
    ),
}
CELLS = [f"{name}/{family}" for name, config in CONFIGS.items() for family in config.families]
HEAD = """# Objectives, stages and families in figures

Made by `make objectives` from the scores and verdicts of its runs; nothing here is typed by hand. A row is one config of
configs/ with one family of models. `base` of each family is pretrained here, from random weights, on the Brown corpus and
the standard library; MiniLM's weights are real ones. The figures are the objective's main metric on the test split with
its 95% bootstrap interval: of the fine-tuned teacher, of the distilled student with half its layers, of the student as
an ONNX graph, of that graph in int8. The models of a row saw the same examples, so they compare more sharply than their
intervals. **Bold** where the whole interval is better than the baseline, the best of those that need no model (majority,
unigram, bigram, tf-idf ...). Data are real, or derived from real texts as the table says; none are synthetic. `gate` says
whether int8 was let through against the teacher. Of `image-classification` the student is the ResNet without half of its
weights, or the ViT with half its layers. Seconds are of pretraining (once for a family), fine-tuning, distilling; some rows had
other work beside them.

A family is in the rows of the objectives it has a head for: decoders continue texts, encoders fill gaps, T5 writes one
text for another, and in place of a sentence's embedding it would want a second text. ERNIE without task ids is
BERT's network, drawn and trained alike: the same figures twice say that its name goes through every stage.
"""


# What real weights need to learn: a twentieth of the rate, and few of the examples.
EPOCHS = {"parts-of-speech": 0.5, "search": 0.25}


def overrides(name: str, family: str) -> list[str]:
    """`--set`s that make a config's models of this family: encoders differ in a word, others in how they are pretrained."""
    if family == "minilm" and name != "minilm":
        return [
            "stages.base={pretrained: {folder: ../data/minilm, max_length: 64}}",
            "stages.student.layers=3",
            *(f"stages.{stage}.learning_rate=2e-4" for stage in ("teacher", "student")),
            *(f"stages.{stage}.epochs={EPOCHS[name]}" for stage in ("teacher", "student")),
        ]
    if family in ENCODERS:
        return [f"stages.base.model.type={family}"]
    if family in DECODERS:
        return [
            "stages.tokenizer={tokenizer: {data: corpus, algorithm: bpe, vocab_size: 4096}}",
            "stages.base.objective=causal_lm",
            "stages.base.learning_rate=6e-3",
            f"stages.base.model={{type: {family}, {SHAPE}, {WIDTH[family]}, initializer_range: 0.08}}",
        ]
    if family == "t5":
        return [
            "stages.tokenizer={tokenizer: {data: corpus, algorithm: bpe, vocab_size: 4096, sentinels: 8}}",
            "stages.base.objective=denoising",
            "stages.base.model={type: t5, d_model: 128, num_layers: 2, num_heads: 4, d_kv: 32, d_ff: 512}",
        ]
    return []


def run(cell: str, folder: Path) -> dict[str, Any]:
    """Run a cell; what is known of it afterwards, or why it failed."""
    name, _, family = cell.partition("/")
    sets = [word for override in (*overrides(name, family), THREADS) for word in ("--set", override)]
    command = [
        sys.executable,
        "-m",
        "flows.cli",
        "run",
        f"configs/{name}.yaml",
        "--store",
        str(folder / "store"),
        *sets,
    ]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, "--json", "--quiet", "--no-report"],
        cwd=ROOT,
        env=os.environ | {"FORGELINE_HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    about = {"cell": cell, "wall": round(time.monotonic() - begun, 1), "environment": environment()}
    if done.returncode not in (0, REFUSED):
        return {**about, "failed": "; ".join(done.stderr.strip().splitlines()[-4:])}
    stages = {stage["name"]: stage for stage in json.loads(done.stdout.splitlines()[-1])["stages"]}
    return {**about, **figures(stages, open_store(str(folder / "store")), CONFIGS[name].stages.get(family, {}))}


def figures(stages: dict[str, Any], store: Store, called: Mapping[str, str]) -> dict[str, Any]:
    """What the stages of a run found, from their artifacts; called: the stages of the table's columns, by these."""
    columns = {name: column for column, name in called.items()}

    def artifact(name: str) -> Any:
        found = store.manifest(stages[name]["artifact"]["kind"], stages[name]["artifact"]["key"])
        assert found is not None, "the run has just made it"
        return found

    folder = store.fetch(artifact("scores"))
    scores = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    drawn = load_file(folder / "replicates.safetensors")
    verdicts = {
        name: json.loads((store.fetch(artifact(name)) / "verdict.json").read_text(encoding="utf-8"))
        for name, stage in stages.items()
        if stage["kind"] == "gate"
    }
    metric = scores["primary_metric"]
    return {
        "metric": metric,
        "greater_is_better": scores["greater_is_better"],
        "n": scores["data"]["n"],
        "baselines": scores["baselines"],
        "models": {
            columns.get(name, name): {
                **found["metrics"][metric],
                "size_mb": found["size_mb"],
                "parameters": found["parameters"],
            }
            for name, found in scores["models"].items()
        },
        "verdicts": {
            columns.get(name, name): {
                "passed": verdict["passed"],
                "said": [one["sentence"] for one in verdict["requirements"]],
            }
            for name, verdict in verdicts.items()
        },
        "difference": difference(drawn, metric) if "scratch" in scores["models"] else None,
        "seconds": {name: artifact(called.get(name, name)).timings["run"] for name in ("base", *STAGES, "scores")},
    }


def difference(drawn: dict[str, Any], metric: str) -> list[float]:
    """The ends of the 95% interval of teacher minus scratch, from the same resamples of both."""
    paired = drawn[f"teacher/{metric}"] - drawn[f"scratch/{metric}"]
    return [float(end) for end in np.quantile(paired, [0.025, 0.975])]


def environment() -> dict[str, str]:
    return machine.environment(("torch", "deepspeed", "transformers", "onnxruntime"))


def page(entries: Sequence[dict[str, Any]]) -> str:
    """The Markdown page."""
    lines = [
        HEAD,
        "| objective | config | family | data | metric | n | baseline | teacher | student | ONNX | int8 | MB | gate | s |",
    ]
    lines.append("|-" * 14 + "|")
    lines += [row(entry) for entry in entries]
    lines += ["", "## The data", ""]
    lines += [f"- `configs/{name}.yaml`: {config.data}." for name, config in CONFIGS.items()]
    compared = [entry for entry in entries if entry.get("difference")]
    if compared:
        lines += ["", "## Were weights made elsewhere worth it?", ""]
        lines += [
            f"`{entry['cell']}`, {entry['metric']} on {entry['n']:,} texts: the real weights, fine-tuned, "
            f"{interval(entry['models']['teacher'])}; the same network and recipe from random weights "
            f"{interval(entry['models']['scratch'])}. The difference, on the same resamples, lies from "
            f"{entry['difference'][0]:+.3f} to {entry['difference'][1]:+.3f} (95%). "
            f"The gate says: {' '.join(entry['verdicts']['weights_pay']['said'])}"
            for entry in compared
        ]
    missing = [entry for entry in entries if not entry.get("failed") and below(entry)]
    if missing:
        lines += ["", "## No better than the baseline", ""]
        lines += [f"- `{entry['cell']}`: {', '.join(below(entry))}." for entry in missing]
    refused = [entry for entry in entries if not entry.get("failed") and not entry["verdicts"]["gate"]["passed"]]
    if refused:
        lines += ["", "## Refused", ""]
        lines += [f"- `{entry['cell']}`: {' '.join(entry['verdicts']['gate']['said'])}" for entry in refused]
    absent = [f"- `{cell}`: not run yet." for cell in CELLS if cell not in {entry["cell"] for entry in entries}]
    absent += [f"- `{entry['cell']}`: its config has changed since." for entry in entries if outdated(entry)]
    if absent:
        lines += ["", "## To be run", "", *absent]
    lines += ["", "## Measured with", ""]
    seen: dict[str, list[str]] = {}
    for entry in entries:
        seen.setdefault(", ".join(f"{k} {v}" for k, v in entry["environment"].items()), []).append(entry["cell"])
    lines += [f"- {', '.join(cells)}: {where}." for where, cells in seen.items()]
    return "\n".join(lines) + "\n"


def row(entry: dict[str, Any]) -> str:
    name, _, family = entry["cell"].partition("/")
    if entry.get("failed"):
        return f"| {CONFIGS[name].objective} | {name} | {family} | failed: {entry['failed']} |" + " |" * 10
    baseline, value = best(entry)
    sizes, seconds = (entry["models"][of]["size_mb"] for of in ("teacher", "int8")), entry["seconds"]
    worse = below(entry)
    cells = [
        CONFIGS[name].objective,
        name,
        family,
        CONFIGS[name].data.partition(":")[0],
        entry["metric"],
        f"{entry['n']:,}",
        f"{baseline} {value:.3f}",
        *(interval(entry["models"][of], bold=of not in worse) for of in STAGES),
        " → ".join(f"{size:.1f}" for size in sizes),
        "passed" if entry["verdicts"]["gate"]["passed"] else "refused",
        " + ".join(f"{seconds[of]:.0f}" for of in ("base", "teacher", "student")),
    ]
    return f"| {' | '.join(cells)} |"


def best(entry: dict[str, Any]) -> tuple[str, float]:
    """The baseline that is hardest to beat."""
    chosen = max if entry["greater_is_better"] else min
    return chosen(entry["baselines"].items(), key=lambda item: item[1])  # type: ignore[no-any-return]


def below(entry: dict[str, Any]) -> list[str]:
    """Models whose interval is not wholly better than the best baseline."""
    _, bar = best(entry)
    higher_is_better = entry["greater_is_better"]
    models = entry["models"]
    return [of for of in STAGES if (models[of]["low"] <= bar if higher_is_better else models[of]["high"] >= bar)]


def outdated(entry: dict[str, Any]) -> bool:
    """Whether the config of a cell is another one than at the commit it ran at."""
    commit = entry["environment"].get("commit", "").rstrip("+")
    file = f"configs/{entry['cell'].partition('/')[0]}.yaml"
    command = ["git", "diff", "--quiet", commit, "--", file]
    return bool(commit) and subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 1


def interval(model: dict[str, Any], *, bold: bool = False) -> str:
    text = f"{model['value']:.3f} [{model['low']:.3f}, {model['high']:.3f}]"
    return f"**{text}**" if bold else text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cells", nargs="*", metavar="CELL", help="CONFIG/FAMILY; all where none is named")
    parser.add_argument("--folder", type=Path, default=ROOT / ".forgeline/objectives", help="kept between attempts")
    given = parser.parse_args(arguments)
    if unknown := [cell for cell in given.cells if cell not in CELLS]:
        parser.error(f"no cell named {unknown[0]!r}; there are {', '.join(CELLS)}")
    known = {entry["cell"]: entry for entry in json.loads(FIGURES.read_text())} if FIGURES.exists() else {}
    with ThreadPoolExecutor(machine.cores()) as pool:
        running = [pool.submit(run, cell, given.folder) for cell in given.cells or CELLS]
        for done in as_completed(running):
            entry = done.result()
            known[entry["cell"]] = entry
            sys.stdout.write(f"{entry['cell']}: {entry['wall']:.0f} s {entry.get('failed', '')}\n")
            sys.stdout.flush()
            entries = [known[cell] for cell in CELLS if cell in known]
            FIGURES.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
            PAGE.write_text(page(entries), encoding="utf-8")
    return int(any(entry.get("failed") for entry in known.values()))


if __name__ == "__main__":
    sys.exit(main())

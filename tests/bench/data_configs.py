"""`make data-figures`: runs the data configs in a store of their own and writes docs/data-configs.md from their data cards.

python -m tests.bench.data_configs
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from infra import refs
from infra.artifacts import Manifest
from infra.open_store import open_store
from infra.store import Store
from tasks.pipeline.load import load_pipeline
from tasks.plan.resolved import latest_ref
from tasks.release.evidence import Evidence
from tasks.release.report.views.data import data_views
from tests.bench import machine

ROOT = Path(__file__).parents[2]
CONFIGS = ("mails", "fashion-mnist", "stdlib")
HEAD = """# The data configs in figures

Made by `make data-figures` from the data cards; nothing here is typed by hand. A step's rows are files, functions, images
or mails; seconds are those of a first run, several stages at a time. `forgeline report` shows the same with examples.
"""


def main() -> int:
    parts = [HEAD]
    with tempfile.TemporaryDirectory() as folder:
        for name in CONFIGS:
            file, store = ROOT / f"configs/{name}.yaml", str(Path(folder, "store"))
            command = [sys.executable, "-m", "flows.cli", "run", str(file), "--store", store]
            subprocess.run(command, cwd=ROOT, check=True)
            pipeline, opened = load_pipeline(file, store=store), open_store(store)
            parts.append(f"## `configs/{name}.yaml`\n\n{pipeline.description}\n")
            for stage in pipeline.stages:
                ref = refs.get(opened, latest_ref(pipeline.name, stage))
                manifest = opened.manifest(ref.artifact.kind, ref.artifact.key) if ref else None
                assert manifest is not None, "the run has just made it"
                parts.append(_stage(stage, manifest, opened))
    where = machine.environment(("pyarrow", "py3langid", "ftfy"))
    parts.append(f"Run on {where['date']}, commit {where['commit']}, {where['cpu']}, {where['cores']} cores.\n")
    (ROOT / "docs/data-configs.md").write_text("\n".join(parts), encoding="utf-8")
    return 0


def _stage(name: str, manifest: Manifest, store: Store) -> str:
    title = f"**{name}** ({manifest.kind}, {manifest.timings['run']:.1f} s)"
    if manifest.kind != "dataset":
        said = ", ".join(f"{key.replace('_', ' ')} {_number(value)}" for key, value in manifest.metrics.items())
        return f"{title}: {said}.\n"
    records = store.fetch_records(manifest)
    assert records is not None
    (view,) = data_views({name: Evidence(manifest.to_json(), records=records)}, [])
    card = json.loads((records / "card.json").read_text(encoding="utf-8"))
    lines = [title + ": " + ", ".join(f"{split} {count}" for split, count in view["splits"]) + ".\n"]
    lines += ["| step | rows in | rows out | what went, what changed |", "|-|-|-|-|"]
    for step in view["steps"]:
        what = "; ".join(filter(None, (step["dropped"], step["changed"] and f"changed: {step['changed']}")))
        lines.append(f"| {step['name']} | {step['in']} | {step['out']} | {what} |")
    if view["labels"]:
        header = " | ".join(split for split, _ in view["splits"])
        lines += ["", f"| label | {header} |", "|-" * (1 + len(view["splits"])) + "|"]
        lines += [f"| {label} | {' | '.join(counts)} |" for label, counts in view["labels"]]
    lines += [
        "",
        *(f"- Column `{c['name']}`: {c['type']}, {c['text']}, {c['missing']} missing." for c in view["columns"]),
    ]
    return "\n".join(lines + _lengths(card["characters"])).rstrip() + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() else f"{value:.3g}"


def _lengths(characters: dict[str, list[list[int]]]) -> list[str]:
    """The middle of each split's lengths, as the card's histogram has it."""
    found: list[Any] = []
    for split, bins in sorted(characters.items(), key=lambda item: ["train", "validation", "test"].index(item[0])):
        seen, total = 0, sum(count for _, _, count in bins)
        for low, high, count in bins:
            seen += count
            if seen * 2 >= total:
                found.append(f"{split} {low:,} to {high:,}")
                break
    return ["- Characters of a row in the middle: " + ", ".join(found) + "."] if found else []


if __name__ == "__main__":
    sys.exit(main())

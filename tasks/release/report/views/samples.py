"""What models said, for people to read: continuations of a prompt, and what was taken for what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.data.dataset.shown_media import PICTURE_URL
from tasks.release.evidence import Evidence, as_list, as_object, read_json

PER_STAGE = 12
PER_MODEL = 4


def samples_views(evidence: dict[str, Evidence], notes: list[str]) -> list[dict[str, Any]]:
    """One entry for each stage, and each model of an evaluation, that left samples.

    {"stage", "written": prompt and continuation, "wrong"/"right": text or picture, truth, prediction,
     "mistakes": [{"text", "picture", "truth", "answers": [(model, answer, right)]}], "other": any other texts}
    """
    views = []
    for stage, found in evidence.items():
        content = read_json(found.records, "samples.json", notes)
        if isinstance(content, dict):
            # An evaluation's samples, by model; what it got wrong is shown better by the mistakes below.
            views += [
                _view(f"{stage}, {name}", as_list(rows), PER_MODEL, judged=False) for name, rows in content.items()
            ]
        else:
            views.append(_view(stage, as_list(content), PER_STAGE, judged=True))
        views.append({**_view(stage, [], 0, judged=False), "mistakes": _mistakes(found.records, notes)})
    return [view for view in views if any(value for name, value in view.items() if name != "stage")]


def _view(stage: str, rows: list[Any], limit: int, *, judged: bool) -> dict[str, Any]:
    texts = [{str(k): str(v) for k, v in row.items()} for row in rows if isinstance(row, dict)]
    texts = [row if PICTURE_URL.fullmatch(row.get("picture", "")) else _without(row, "picture") for row in texts]
    written = [r for r in texts if "prompt" in r and "continuation" in r]
    answered = [r for r in texts if "truth" in r and "prediction" in r]
    shown = answered if judged else []
    groups = {
        "written": written,
        "wrong": [r for r in shown if r["truth"] != r["prediction"]],
        "right": [r for r in shown if r["truth"] == r["prediction"]][:2],
        "other": [r for r in texts if r not in written and r not in answered],
    }
    return {"stage": stage, "mistakes": [], **{name: group[:limit] for name, group in groups.items()}}


def _without(row: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in row.items() if key != name}


def _mistakes(records: Path | None, notes: list[str]) -> list[dict[str, Any]]:
    rows = [r for r in as_list(read_json(records, "misclassified.json", notes)) if isinstance(r, dict)]
    return [
        {
            "id": str(row.get("id") or ""),
            "text": str(row.get("text") or ""),
            "picture": str(row.get("picture")) if PICTURE_URL.fullmatch(str(row.get("picture"))) else "",
            "truth": str(row.get("truth")),
            "answers": [(str(m), str(a), a == row.get("truth")) for m, a in as_object(row.get("predictions")).items()],
        }
        for row in rows[:PER_STAGE]
    ]

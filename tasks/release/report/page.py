"""`forgeline report`: a run as one HTML page that needs nothing else, neither a network nor a script.

    html = render_report(run, load)

`run` is the run record (`run`, `pipeline`, `status`, `stages` ...); `load` turns an artifact reference into `Evidence`.
The page answers, in this order: what shipped and was it worth it; what went wrong, if anything did; what ran and where
the time went; how training went; how good and how expensive each model is; what the gate said; where it all came from.

Everything a run may hold can be missing: a failed run has no scores, an old store has lost its records. What is missing
is left out, what could not be read is said in a note. Every text is escaped by jinja2 or markupsafe: corpora, labels
and samples are other people's text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from markupsafe import Markup

from tasks.release import readable
from tasks.release.drawing.charts import Series, line_chart
from tasks.release.drawing.dag_picture import ACTIONS, dag
from tasks.release.drawing.template import template
from tasks.release.evidence import Evidence, Load, as_list, as_object, gather, json_object, read_baselines, read_curve
from tasks.release.report.views.conflict import conflict_views
from tasks.release.report.views.data import data_views, drift_view
from tasks.release.report.views.ledger import ledger_view
from tasks.release.report.views.release import headline, model_name, release_view, tiles, verdict_view
from tasks.release.report.views.samples import samples_views
from tasks.release.report.views.scores import scores_view

__all__ = ["Evidence", "Load", "render_report"]


UNREACHED = ("skipped", "waiting")


@dataclass(frozen=True)
class CurveView:
    """The loss chart of one stage, its legend [(name, series colour)], and what the chart does not show."""

    stage: str
    picture: Markup
    legend: list[tuple[str, int]]
    text: str


def render_report(run: dict[str, Any], load: Load) -> str:
    """The page for a run record. Never raises on missing or damaged evidence."""
    notes: list[str] = []
    stages = [s for s in run.get("stages") or [] if isinstance(s, dict) and s.get("name")]
    evidence = gather(stages, load, notes)
    of_type: dict[str, list[tuple[str, Evidence]]] = {}
    for stage in stages:
        if stage["name"] in evidence:
            of_type.setdefault(str(stage["artifact"].get("type")), []).append((stage["name"], evidence[stage["name"]]))

    def objects(kind: str, file: str) -> list[tuple[str, dict[str, Any]]]:
        found = [(name, json_object(e.payload, file, notes)) for name, e in of_type.get(kind, [])]
        return [(name, data) for name, data in found if data]

    judged, releases = objects("verdict", "verdict.json"), objects("release", "release.json")
    screens = _screens(stages, {name for name, _ in judged})
    verdicts = [(name, verdict) for name, verdict in judged if name not in screens]
    all_scores = [(name, s) for name, s in objects("scores", "scores.json") if not _only_for(name, screens, stages)]
    datasets = dict(objects("dataset", "dataset.json"))
    shipped = next((model_name(v["candidate"]) for _, v in verdicts if v.get("candidate")), None)
    views = [scores_view(name, s, _labels(s, datasets), shipped) for name, s in all_scores]
    return _template().render(
        run_id=str(run.get("run") or ""),
        status=str(run.get("status") or "unknown"),
        description=run.get("description") or "",
        title=run.get("pipeline") or "pipeline",
        stopped=run.get("stopped") or "",
        links=[(str(name), str(place)) for name, place in as_object(run.get("links")).items()],
        when=readable.moment(run.get("started")),
        total=readable.seconds(run.get("seconds")),
        half=readable.seconds(run["seconds"] / 2) if readable.is_number(run.get("seconds")) else "",
        headline=headline(run, all_scores, verdicts, releases),
        tiles=tiles(run, stages, all_scores, verdicts),
        troubles=[_trouble(s) for s in stages if s.get("error")],
        warned=[(s["name"], str(warning)) for s in stages for warning in as_list(s.get("warnings"))],
        refused=[s["name"] for s in stages if s.get("action") == "refused"],
        dag=dag(stages),
        actions=[(a, text) for a, text in ACTIONS.items() if any(s.get("action") == a for s in stages)],
        timeline=_timeline(stages, run.get("seconds")),
        ledger=ledger_view(run.get("ledger")),
        data=data_views(dict(of_type.get("dataset", [])), notes),
        drifts=[drift_view(name, drift) for name, drift in objects("drift", "drift.json")],
        curves=[view for s in stages if (view := _curve(s, evidence.get(s["name"]), notes))],
        conflicts=conflict_views(evidence, notes),
        scores=[view for view in views if view],
        verdicts=[verdict_view(name, verdict) for name, verdict in verdicts],
        screens=[verdict_view(name, verdict) for name, verdict in judged if name in screens],
        releases=[release_view(name, release, evidence[name].history) for name, release in releases],
        samples=samples_views(evidence, notes),
        lineage=[_lineage(s, evidence.get(s["name"])) for s in stages],
        reasons=any(s.get("reason") for s in stages),
        config=run.get("config") or "",
        notes=list(dict.fromkeys(notes)),
    )


@cache
def _template() -> Template:
    file = Path(__file__).with_name("report.html.j2")
    return template(file, readable_seconds=readable.seconds, short=readable.shorten)


def _labels(scores: dict[str, Any], datasets: dict[str, dict[str, Any]]) -> list[str] | None:
    """Class names of the data the scores were measured on."""
    own = as_list(scores.get("labels"))
    if own:
        return [str(label) for label in own]
    named = datasets.get(str(as_object(scores.get("data")).get("stage")), {})
    labels = named.get("labels") or next((d["labels"] for d in datasets.values() if d.get("labels")), None)
    return [str(label) for label in labels] if isinstance(labels, list) else None


def _screens(stages: list[dict[str, Any]], gates: set[str]) -> set[str]:
    """The gates that decide what more is made, not what ships: something other than a release waits for them."""
    return {name for s in stages if s.get("kind") != "promote" for name in as_list(s.get("needs")) if name in gates}


def _only_for(name: str, wanted: set[str], stages: list[dict[str, Any]]) -> bool:
    """Whether a stage is needed by these alone."""
    needing = {s["name"] for s in stages if name in as_list(s.get("needs"))}
    return bool(needing) and needing <= wanted


def _trouble(stage: dict[str, Any]) -> dict[str, Any]:
    error = stage["error"] if isinstance(stage["error"], dict) else {"what": str(stage["error"])}
    text = {key: str(error.get(key) or "") for key in ("type", "what", "where", "hint")}
    return {"stage": stage["name"], "kind": stage.get("kind", ""), "action": stage.get("action", ""), **text}


def _timeline(stages: list[dict[str, Any]], total: Any) -> list[dict[str, Any]]:
    """Rows of the time chart in order of start; offsets and lengths in percent of the run."""

    def figure(stage: dict[str, Any], name: str) -> float:
        value = stage.get(name)
        return value if readable.is_number(value) and value > 0 else 0.0

    reached = [s for s in stages if s.get("action") not in UNREACHED]
    ends = [figure(s, "started_at") + figure(s, "seconds") for s in reached]
    whole = max([*ends, total if readable.is_number(total) else 0, 1e-9])
    rows = [
        {
            "name": s["name"],
            "kind": s.get("kind", ""),
            "action": s.get("action", ""),
            "start": f"{100 * figure(s, 'started_at') / whole:.2f}",
            "length": f"{100 * figure(s, 'seconds') / whole:.2f}",
            "text": readable.seconds(figure(s, "seconds")) if s.get("action") != "reuse" else "reused",
            "share": readable.percent(figure(s, "seconds") / whole),
        }
        for s in sorted(reached, key=lambda s: figure(s, "started_at"))
    ]
    unreached = [s for s in stages if s.get("action") in UNREACHED]
    return rows + [
        {"name": s["name"], "kind": s.get("kind", ""), "action": s["action"], "text": ACTIONS[s["action"]], "start": ""}
        for s in unreached
    ]


def _curve(stage: dict[str, Any], found: Evidence | None, notes: list[str]) -> CurveView | None:
    curve = read_curve(found.records) if found else None
    if found is None or curve is None or not (curve.train or curve.validation):
        return None
    values = [y for _, y in [*curve.train, *curve.validation]]
    metric, known = read_baselines(found.records, notes)
    # Baselines are values of the objective's metric; only a loss in nats belongs into a chart of the loss.
    same = metric in ("loss", "cross_entropy")
    near = [(n, v) for n, v in known if same and min(values) * 0.6 <= v <= max(values) * 1.25]
    series = [
        s for s in (Series("train", curve.train, 0), Series("validation", curve.validation, 1, dots=True)) if s.points
    ]
    rates = sorted(curve.speed)
    parts = [
        f"final validation loss {readable.number(curve.validation[-1][1])}" if curve.validation else "",
        f"{readable.compact(rates[len(rates) // 2])} {curve.unit}/s" if rates else "",
        f"peak learning rate {readable.rate(curve.peak_learning_rate)}" if curve.peak_learning_rate else "",
        *(
            f"baseline {name} {readable.number(value)} ({readable.metric_title(metric)})"
            for name, value in known
            if (name, value) not in near
        ),
        "from an earlier run" if stage.get("action") == "reuse" else "",
    ]
    label = f"Loss of {stage['name']} over optimizer steps"
    return CurveView(
        str(stage["name"]),
        line_chart(label, series, near),
        [(s.name, s.color) for s in series],
        ", ".join(part for part in parts if part),
    )


def _lineage(stage: dict[str, Any], found: Evidence | None) -> dict[str, Any]:
    artifact = stage.get("artifact") or {}
    manifest = found.manifest if found else {}
    files = [f for f in as_list(manifest.get("payload")) if isinstance(f, dict) and readable.is_number(f.get("size"))]
    inputs = as_object(manifest.get("inputs"))
    return {
        "name": stage["name"],
        "action": ACTIONS.get(str(stage.get("action")), str(stage.get("action"))),
        "reason": stage.get("reason") or "",
        "kind": artifact.get("kind") or stage.get("kind", ""),
        "type": artifact.get("type", ""),
        "key": str(artifact.get("key") or ""),
        "digest": str(artifact.get("digest") or ""),
        "size": readable.bytes_size(sum(f["size"] for f in files)) if files else "",
        "inputs": [_input(str(name), item) for name, items in inputs.items() for item in _as_items(items)],
        "needs": stage.get("needs") or [],
    }


def _as_items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _input(name: str, value: Any) -> tuple[str, str]:
    """(what the input is called, the digest it entered with); a manifest holds an object or just the digest."""
    if not isinstance(value, dict):
        return name, str(value)
    stage, digest = value.get("stage"), value.get("digest") or value.get("key") or ""
    return str(stage or name), str(digest)

"""The verdict and the release in words: the first sentence, the tiles, the gate's requirements, the ref's history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tasks.evaluation.champion import NAME, sentence
from tasks.release.evidence import as_list, as_object
from tasks.release.readable import (
    MINUS,
    bytes_size,
    is_number,
    metric_title,
    moment,
    number,
    seconds,
    signed,
    times,
)
from tasks.release.report.views.scores import batch_sizes, estimate, latency

Named = list[tuple[str, dict[str, Any]]]
"""Evidence by the stage it came from: [(stage name, parsed file)]."""


@dataclass(frozen=True)
class Tile:
    """One large number at the top of the page."""

    label: str
    value: str
    below: str = ""


@dataclass(frozen=True)
class Comparison:
    """The candidate beside what it replaces: scores, metric estimate, how many times smaller and faster."""

    candidate: str
    against: str
    metric: str
    own: tuple[float, float, float] | None
    other: tuple[float, float, float] | None
    smaller: float | None
    faster: float | None
    batch: str


def compare(scores: Named, verdicts: Named) -> Comparison | None:
    """The gate's candidate against its reference, in the first scores that hold it; without a gate the last and first
    model of the scores."""
    verdict = verdicts[0][1] if verdicts else {}
    for _, found in scores:
        models = {str(k): v for k, v in as_object(found.get("models")).items() if isinstance(v, dict)}
        if not models:
            continue
        candidate = model_name(verdict.get("candidate")) or list(models)[-1]
        against = model_name(verdict.get("against")) or next(iter(models))
        if candidate not in models:
            continue
        metric = str(found.get("primary_metric") or "")
        one, other = models[candidate], models.get(against, {})
        batch = next(iter(batch_sizes([one])), "1")
        return Comparison(
            candidate,
            against if against in models and against != candidate else "",
            metric,
            estimate(one, metric),
            estimate(other, metric),
            _ratio(other.get("size_mb"), one.get("size_mb")),
            _ratio(latency(other, batch), latency(one, batch)),
            batch,
        )
    return None


def model_name(entry: Any) -> str:
    """The name of a verdict's candidate or reference: {"name", ...} or just the name."""
    return str(as_object(entry).get("name") or "") if isinstance(entry, dict) else str(entry or "")


def _ratio(above: Any, below: Any) -> float | None:
    return above / below if is_number(above) and is_number(below) and below > 0 and above > 0 else None


def _factor(ratio: float, more: str, less: str) -> str:
    if 0.95 <= ratio <= 1.05:
        return ""
    return f"{times(ratio)} {more}" if ratio > 1 else f"{times(1 / ratio)} {less}"


def headline(run: dict[str, Any], scores: Named, verdicts: Named, releases: Named) -> str:
    """One sentence a reader can quote: what shipped, how much smaller and faster, at which metric."""
    status, found = run.get("status"), compare(scores, verdicts)
    if status == "running":
        return (
            "This run has not finished: it is still going, or it was killed. Running it again picks up where it ended."
        )
    if status == "interrupted":
        return "The run was interrupted. Running it again reuses what is finished and resumes what was training."
    failed = [str(s["name"]) for s in run.get("stages") or [] if s.get("action") == "failed"]
    if failed:
        return f"{_listed(failed)} failed, so nothing shipped."
    name = found.candidate if found else model_name(verdicts[0][1].get("candidate")) if verdicts else ""
    if verdicts and not all(v.get("passed") for _, v in verdicts):
        start = f"{name or 'The candidate'} was refused by the gate, so nothing shipped"
    elif releases:
        ref = releases[0][1].get("ref")
        start = f"{name or 'A model'} shipped" + (f" as {ref}" if ref else "")
    elif found:
        start = f"{name} was evaluated"
    else:
        return "The run finished." if status == "ok" else ""
    if not found:
        return f"{start}."
    factors = [
        _factor(found.smaller, "smaller", "larger") if found.smaller else "",
        _factor(found.faster, "faster", "slower") if found.faster else "",
    ]
    gains = " and ".join(f for f in factors if f)
    sentence = f"{start}: {gains} than {found.against}" if gains and found.against else start
    if found.own:
        value, low, high = found.own
        sentence += f"{', ' if gains else ': '}with {metric_title(found.metric)} {number(value)}"
        sentence += f" (95% interval {number(low)} to {number(high)})" if low != high else ""
        sentence += (
            f", {signed(value - found.other[0])} against {found.against}" if found.other and found.against else ""
        )
    return f"{sentence}."


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def tiles(run: dict[str, Any], stages: list[dict[str, Any]], scores: Named, verdicts: Named) -> list[Tile]:
    """The three to five numbers that sum a run up."""
    found, shown = compare(scores, verdicts), []
    if found and found.own:
        value, low, high = found.own
        below = f"{number(low)} to {number(high)} at 95%" if low != high else found.candidate
        shown.append(Tile(metric_title(found.metric), number(value), below))
    if found and found.smaller:
        word = "smaller" if found.smaller >= 1 else "larger"
        shown.append(
            Tile(f"{word.title()} than {found.against}", times(max(found.smaller, 1 / found.smaller)), "on disk")
        )
    if found and found.faster:
        word = "faster" if found.faster >= 1 else "slower"
        factor = times(max(found.faster, 1 / found.faster))
        shown.append(Tile(f"{word.title()} than {found.against}", factor, f"median, batch {found.batch}"))
    if verdicts:
        checks = [r for _, v in verdicts for r in as_list(v.get("requirements")) if isinstance(r, dict)]
        met = sum(bool(r.get("passed")) for r in checks)
        passed = all(v.get("passed") for _, v in verdicts)
        shown.append(Tile("Gate", "passed" if passed else "refused", f"{met} of {len(checks)} requirements met"))
    reused = sum(s.get("action") == "reuse" for s in stages)
    finished = sum(bool(s.get("artifact")) for s in stages)
    if finished < len(stages):
        shown.append(Tile("Stages finished", f"{finished} of {len(stages)}", "the rest can go on from here"))
    shown.append(Tile("Total time", seconds(run.get("seconds")), f"{reused} of {len(stages)} stages reused"))
    return shown


def verdict_view(stage: str, verdict: dict[str, Any]) -> dict[str, Any]:
    """A gate's verdict with a sentence for each requirement; one is written where the gate gave none.

    A frontier's has the candidates it chose from, too.
    """
    rows = [r for r in as_list(verdict.get("requirements")) if isinstance(r, dict)]
    return {
        "stage": stage,
        "passed": bool(verdict.get("passed")),
        "candidate": model_name(verdict.get("candidate")),
        "against": model_name(verdict.get("against")),
        "champion": sentence(as_object(verdict[NAME])) if NAME in verdict else "",
        "requirements": [
            {
                "passed": bool(r.get("passed")),
                "sentence": str(
                    r.get("sentence") or f"{metric_title(str(r.get('metric', '')))} meets {r.get('rule', '')}"
                ),
                "slices": [str(as_object(one).get("sentence") or "") for one in as_list(r.get("slices"))],
                "numbers": [(key, _value(r[key])) for key in NUMBERS if _is_given(r.get(key))],
            }
            for r in rows
        ],
        "cost": metric_title(str(verdict.get("smallest") or "")),
        "candidates": [
            {
                "name": str(one.get("name")),
                "outcome": "passed" if one.get("passed") else "refused",
                "chosen": bool(verdict.get("passed")) and one.get("name") == model_name(verdict.get("candidate")),
                "cost": number(one.get("cost")),
                "on_front": bool(one.get("on_front")),
            }
            for one in as_list(verdict.get("candidates"))
            if isinstance(one, dict)
        ],
    }


NUMBERS = ("candidate", "against", "difference", "bound", "limit")


def _is_given(value: Any) -> bool:
    return is_number(value) or (isinstance(value, dict | list | str) and bool(value))


def _value(value: Any) -> str:
    if is_number(value):
        return f"{value:,.4g}".replace("-", MINUS)
    if isinstance(value, dict):
        if is_number(value.get("value")) and is_number(value.get("low")) and is_number(value.get("high")):
            return f"{_value(value['value'])} ({_value(value['low'])} to {_value(value['high'])})"
        return ", ".join(f"{k} {_value(v)}" for k, v in value.items())
    if isinstance(value, list):
        return " to ".join(_value(v) for v in value)
    return str(value)


def release_view(stage: str, release: dict[str, Any], moves: list[dict[str, Any]]) -> dict[str, Any]:
    """The release: its ref, its plain facts, and the ref's history as a table of whatever columns it has."""
    history = [h if isinstance(h, dict) else {"entry": h} for h in moves or as_list(release.get("history"))]
    columns = list(dict.fromkeys(str(k) for h in history for k in h))
    return {
        "stage": stage,
        "ref": str(release.get("ref") or ""),
        "facts": [
            (str(k), _fact(str(k), v)) for k, v in release.items() if k not in ("ref", "history", NAME) and _is_given(v)
        ],
        "columns": columns,
        "history": [[_fact(c, h.get(c)) for c in columns] for h in history],
    }


def _fact(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name in ("at", "when", "time", "date", "moved", "since") and isinstance(value, str):
        return moment(value)
    if name in ("bytes", "size") and is_number(value):
        return bytes_size(value)
    if isinstance(value, dict):
        return ", ".join(f"{k} {_fact(str(k), v)}" for k, v in value.items())
    text = str(value)
    # Full digests are for machines; twelve characters distinguish two.
    return text[:12] if len(text) >= 40 and all(c in "0123456789abcdef" for c in text) else text

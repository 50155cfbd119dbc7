"""A scores.json as the report shows it: quality table, cost table, scatter and confusion matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tasks.metrics.direction import greater_is_better
from tasks.release.drawing import charts
from tasks.release.drawing.svg import padded
from tasks.release.evidence import as_list, as_object
from tasks.release.gate.slices import conditions
from tasks.release.readable import (
    MINUS,
    compact,
    is_number,
    metric_title,
    number,
    signed,
)


@dataclass(frozen=True)
class Cell:
    """A table cell: its text, smaller lines below it, whether it is the best of its column."""

    text: str
    below: tuple[str, ...] = ()
    best: bool = False


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    shipped: bool
    bar: Markup
    cells: list[Cell]


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[Row]


@dataclass(frozen=True)
class ScoresView:
    """Everything the template needs of one evaluation."""

    stage: str
    primary: str
    direction: str
    first: str
    text: str
    quality: Table
    conditions: Table | None
    baselines: list[tuple[str, str, str]]
    cost: Table
    scatter: Markup | None
    matrices: list[tuple[str, Markup]]
    chosen: int


def scores_view(stage: str, scores: dict[str, Any], labels: list[str] | None, shipped: str | None) -> ScoresView | None:
    """Build the view, or None if the scores hold no model. `shipped`: stage name of the gate's candidate."""
    models = {str(k): v for k, v in as_object(scores.get("models")).items() if isinstance(v, dict)}
    if not models:
        return None
    primary = str(scores.get("primary_metric") or next(iter(_metric_names(models)), ""))
    higher_is_better = bool(scores.get("greater_is_better", greater_is_better(primary)))
    matrices = [
        (name, charts.confusion(f"Confusion matrix of {name}", counts, _class_names(model, labels, len(counts))))
        for name, model in models.items()
        if (counts := square(model.get("confusion")))
    ]
    names = [name for name, _ in matrices]
    direction = "higher is better" if higher_is_better else "lower is better"
    return ScoresView(
        stage=stage,
        primary=metric_title(primary),
        direction=direction,
        first=next(iter(models)),
        text=_summary(scores, models),
        conditions=_by_condition(scores, models, primary, higher_is_better),
        quality=_quality(
            {name: _of_all(model, scores) for name, model in models.items()},
            primary,
            higher_is_better,
            shipped,
            as_object(scores.get("baselines")),
            set(labels or ()),
        ),
        baselines=_baselines(as_object(scores.get("baselines")), primary, models),
        cost=_cost(models, shipped),
        scatter=_scatter(models, primary, shipped, direction),
        matrices=matrices,
        chosen=names.index(shipped) if shipped in names else 0,
    )


def estimate(model: dict[str, Any], metric: str) -> tuple[float, float, float] | None:
    """(value, low, high) of a metric; the interval shrinks to the value where none was measured."""
    found = as_object(model.get("metrics")).get(metric)
    entry = found if isinstance(found, dict) else {"value": found}
    if not is_number(value := entry.get("value")):
        return None
    low, high = entry.get("low"), entry.get("high")
    return value, low if is_number(low) else value, high if is_number(high) else value


def latency(model: dict[str, Any], batch: str, quantile: str = "p50") -> float | None:
    """Milliseconds for a batch of the given size, or None."""
    value = as_object(as_object(model.get("latency_ms")).get(batch)).get(quantile)
    return value if is_number(value) and value >= 0 else None


def batch_sizes(models: Iterable[dict[str, Any]]) -> list[str]:
    """Batch sizes any model was timed at, smallest first."""
    found = {str(batch) for model in models for batch in as_object(model.get("latency_ms"))}
    return sorted(found, key=lambda b: (not b.isdigit(), int(b) if b.isdigit() else 0, b))


def square(counts: Any) -> list[list[int]]:
    """The confusion matrix if it is one: n x n counts; else empty."""
    if (
        not isinstance(counts, list)
        or not counts
        or not all(isinstance(r, list) and len(r) == len(counts) for r in counts)
    ):
        return []
    return [[int(c) if is_number(c) else 0 for c in row] for row in counts]


def _class_names(model: dict[str, Any], labels: list[str] | None, n: int) -> list[str]:
    own = as_list(model.get("labels")) or labels or []
    return [str(own[i]) if i < len(own) else str(i) for i in range(n)]


def _metric_names(models: dict[str, dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(name) for model in models.values() for name in as_object(model.get("metrics"))))


def _summary(scores: dict[str, Any], models: dict[str, dict[str, Any]]) -> str:
    data = as_object(scores.get("data"))
    where = ".".join(str(data[k]) for k in ("stage", "split") if data.get(k))
    entries = [m for model in models.values() for m in as_object(model.get("metrics")).values()]
    counts = {n for m in entries if is_number(n := as_object(m).get("n"))}
    n = data.get("n") or (counts.pop() if len(counts) == 1 else None)
    text = f"{n:,} examples" if is_number(n) else "the same examples"
    return f"{text} of {where}" if where else text


def _quality(
    models: dict[str, dict[str, Any]],
    primary: str,
    higher_is_better: bool,
    shipped: str | None,
    baselines: dict[str, Any],
    labels: set[str],
) -> Table:
    # A class's own metrics would be three columns a class; the confusion matrix shows what they say.
    shown = (n for n in _metric_names(models) if n.partition("@")[2] not in labels)
    names = [primary, *(n for n in shown if n != primary)]
    best = {
        n: _best(
            [e[0] if (e := estimate(m, n)) else None for m in models.values()],
            higher_is_better if n == primary else _higher_is_better(models, n),
        )
        for n in names
    }
    found = [e for m in models.values() if (e := estimate(m, primary))]
    marks = [v for _, v in baseline_values(baselines, primary)]
    span = padded([b for e in found for b in e[1:]], 0.08) if found else (0.0, 1.0)
    if marks and found:
        # A baseline is worth showing only if it does not squeeze the models into one spot.
        wide = padded([*span, *marks], 0.02)
        span = wide if (wide[1] - wide[0]) < 2.5 * (span[1] - span[0]) else span
    first = next(iter(models.values()))
    rows = []
    for name, model in models.items():
        cells = [
            _cell(estimate(model, n), estimate(first, n) if model is not first else None, best[n], "") for n in names
        ]
        own = estimate(model, primary)
        bar = charts.interval(*own, span, marks) if own else Markup("")
        rows.append(Row(name, str(model.get("type") or ""), name == shipped, bar, cells))
    return Table([metric_title(n) for n in names], rows)


def _cell(
    own: tuple[float, float, float] | None, base: tuple[float, float, float] | None, best: float | None, than: str
) -> Cell:
    """A metric with its interval and the difference to `base`, which is called `than`."""
    if own is None:
        return Cell(number(None))
    below = [f"{number(own[1])} to {number(own[2])}"] if own[1] != own[2] else []
    below += [f"{signed(own[0] - base[0])}{than}"] if base else []
    return Cell(number(own[0]), tuple(below), own[0] == best)


def _of_all(model: dict[str, Any], scores: dict[str, Any]) -> dict[str, Any]:
    """The model with the metrics of all examples as they are."""
    others = tuple(conditions(scores))
    kept = {name: m for name, m in as_object(model.get("metrics")).items() if not str(name).endswith(others)}
    return {**model, "metrics": kept}


def _by_condition(
    scores: dict[str, Any], models: dict[str, dict[str, Any]], primary: str, higher_is_better: bool
) -> Table | None:
    """The primary metric of each model on every slice and on changed examples; None where there is neither."""
    found = conditions(scores)
    if not found:
        return None
    first, rows = next(iter(models.values())), []
    for condition, text in {"": _summary(scores, models), **found}.items():
        own = {name: estimate(model, f"{primary}{condition}") for name, model in models.items()}
        best = _best([e[0] if e else None for e in own.values()], higher_is_better)
        changed = condition and "=" not in condition
        cells = [
            _cell(e, estimate(models[name], primary), best, " to unchanged")
            if changed
            else _cell(e, estimate(first, f"{primary}{condition}") if models[name] is not first else None, best, "")
            for name, e in own.items()
        ]
        rows.append(Row(condition.strip("[]").replace("=", " = ", 1) or "all", text, False, Markup(""), cells))
    return Table(list(models), rows)


def _higher_is_better(models: dict[str, dict[str, Any]], metric: str) -> bool | None:
    """Whether more of a metric is better; None where its scores say that neither more nor less is."""
    entries = [as_object(as_object(model.get("metrics")).get(metric)) for model in models.values()]
    text = [entry["greater_is_better"] for entry in entries if "greater_is_better" in entry]
    return (text[0] if text[0] is None else bool(text[0])) if text else greater_is_better(metric)


def _best(values: list[float | None], higher_is_better: bool | None) -> float | None:
    known = [v for v in values if v is not None and higher_is_better is not None]
    return (max(known) if higher_is_better else min(known)) if len(known) > 1 else None


def _cost(models: dict[str, dict[str, Any]], shipped: str | None) -> Table:
    batches = batch_sizes(models.values())
    read: list[tuple[str, Callable[[dict[str, Any]], Any], Callable[[Any], str]]] = [
        ("Size, MB", lambda m: m.get("size_mb"), lambda v: number(v, 2)),
        ("Parameters", lambda m: m.get("parameters"), compact),
    ]
    for batch in batches:
        read.append((f"Latency, batch {batch}, ms", lambda m, b=batch: latency(m, b), lambda v: number(v, 2)))  # type: ignore[misc]
    read.append(("Peak memory, MB", lambda m: m.get("peak_memory_mb"), lambda v: number(v, 1)))
    read = [entry for entry in read if any(is_number(entry[1](m)) for m in models.values())]
    first = next(iter(models.values()))
    rows = []
    for name, model in models.items():
        cells = []
        for title, get, show in read:
            value, base = get(model), get(first)
            below = []
            if title.startswith("Latency") and is_number(value):
                p95 = latency(model, title.split()[2].rstrip(","), "p95")
                below += [f"p95 {number(p95, 2)}"] if p95 is not None else []
            if is_number(value) and is_number(base) and base > 0 and model is not first:
                below.append(change(value / base))
            best = _best([v if is_number(v := get(m)) else None for m in models.values()], higher_is_better=False)
            cells.append(Cell(show(value), tuple(below), is_number(value) and value == best))
        rows.append(Row(name, str(model.get("type") or ""), name == shipped, Markup(""), cells))
    return Table([title for title, _, _ in read], rows)


def change(ratio: float) -> str:
    """A ratio as a change: `-73 %`, `+4 %`."""
    value = round(100 * (ratio - 1))
    return f"{MINUS if value < 0 else '+' if value > 0 else ''}{abs(value)}\N{NARROW NO-BREAK SPACE}%"


def baseline_values(baselines: dict[str, Any], primary: str) -> list[tuple[str, float]]:
    """(name, value of the primary metric) of each baseline that has one."""
    found = []
    for name, value in baselines.items():
        inner = value.get(primary, value.get("value")) if isinstance(value, dict) else value
        inner = inner.get("value") if isinstance(inner, dict) else inner
        if is_number(inner):
            found.append((str(name), inner))
    return found


def _baselines(baselines: dict[str, Any], primary: str, models: dict[str, Any]) -> list[tuple[str, str, str]]:
    first = estimate(next(iter(models.values())), primary)
    return [
        (name, number(value), signed(value - first[0]) if first else "")
        for name, value in baseline_values(baselines, primary)
    ]


def _scatter(models: dict[str, dict[str, Any]], primary: str, shipped: str | None, direction: str) -> Markup | None:
    batch = next(iter(batch_sizes(models.values())), "1")
    variants = [
        charts.Variant(name, model["size_mb"], *found, latency(model, batch), name == shipped)
        for name, model in models.items()
        if is_number(model.get("size_mb")) and model["size_mb"] > 0 and (found := estimate(model, primary))
    ]
    if len(variants) < 2:  # there is nothing to weigh it against
        return None
    return charts.scatter(
        f"{metric_title(primary)} against size; circle area is latency",
        variants,
        f"{metric_title(primary)} ({direction})",
    )

"""Whether the tasks of one training pulled the shared layers the same way: a small table for the report."""

from __future__ import annotations

from typing import Any

from tasks.release.evidence import Evidence, as_list, as_object, json_object
from tasks.release.readable import DASH, compact, is_number, number


def conflict_views(evidence: dict[str, Evidence], notes: list[str]) -> list[dict[str, Any]]:
    """One entry for each stage that trained several tasks.

    {"stage", "text", "tasks", "rows": [(task, share of the batch, gradient norm, [cosine with each task])]}; a cosine
    is (text, whether the two conflict, what it was before the training).
    """
    views = []
    for stage, found in evidence.items():
        data = json_object(found.records, "conflict.json", notes)
        before, after = as_object(data.get("before")), as_object(data.get("after"))
        tasks, matrix = [str(task) for task in as_list(after.get("tasks"))], as_list(after.get("cosine"))
        if len(tasks) < 2 or len(matrix) != len(tasks):
            continue
        mixture = json_object(found.records, "mixture.json", notes)
        rows = []
        for i, task in enumerate(tasks):
            own = as_object(mixture.get(task))
            cosines = [_cosine(_at(matrix, i, j), _at(before.get("cosine"), i, j), i == j) for j in range(len(tasks))]
            norm = _entry(after.get("norms"), i)
            rows.append(
                (task, compact(own["in_batch"]) if is_number(own.get("in_batch")) else "", number(norm), cosines)
            )
        views.append({"stage": stage, "text": _summary(before, after), "tasks": tasks, "rows": rows})
    return views


def _summary(before: dict[str, Any], after: dict[str, Any]) -> str:
    pairs = len(as_list(after.get("tasks"))) * (len(as_list(after.get("tasks"))) - 1) // 2
    shares = [found.get("conflicting") for found in (before, after)]
    was, now = (str(round(share * pairs)) if is_number(share) else DASH for share in shares)
    return (
        f"{now} of {pairs} {'pairs' if pairs > 1 else 'pair'} of tasks in conflict after the training, {was} before it"
    )


def _cosine(value: Any, was: Any, same: bool) -> tuple[str, bool, str]:
    if same:
        return "", False, ""
    return number(value, 2), is_number(value) and value < 0, number(was, 2)


def _at(matrix: Any, i: int, j: int) -> Any:
    return _entry(_entry(matrix, i), j)


def _entry(values: Any, i: int) -> Any:
    found = as_list(values)
    return found[i] if i < len(found) else None

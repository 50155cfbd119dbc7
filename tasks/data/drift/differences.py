"""How one set of examples differs from another, each difference with a size and a probability.

A p-value says how often a difference at least this large would come about if both sets were drawn from one source; with
enough examples it is small for differences nobody cares about. So a difference counts as drift where it is unlikely
(after Holm's correction, 1979, for the number of tests) and large.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.data.drift.columns import column_differences
from tasks.data.drift.difference import Difference, judged, shares
from tasks.data.drift.texts import text_differences


def differences(
    old: Sequence[Mapping[str, Any]],
    new: Sequence[Mapping[str, Any]],
    *,
    alpha: float,
    sizes: dict[str, float],
    seed: int,
) -> list[Difference]:
    """Every test on two sets of rows, judged together: of `text` where there are texts, of `label` where all have one,
    and of `columns`, as measured by `tasks/data/drift/columns.py`.
    """
    old_texts, new_texts = [row.get("text") or "" for row in old], [row.get("text") or "" for row in new]
    found = []
    if all("label" in row for row in (*old, *new)):
        found.append(shares("label", [row["label"] for row in old], [row["label"] for row in new]))
    if any(old_texts) or any(new_texts):
        found += text_differences(old_texts, new_texts, seed)
    found += column_differences([row.get("columns", {}) for row in old], [row.get("columns", {}) for row in new])
    return judged(found, alpha=alpha, sizes=sizes)

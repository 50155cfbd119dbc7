"""What the data card says of the columns that pass through, counted where rows are written and added up over shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

MEASURED = {"string": "characters", "binary": "bytes"}
"""What the figures of a column are of, where they are not of its values."""


class ColumnFigures:
    """Of some columns: rows, missing values, and the least, the most and the sum of those that are finite numbers.

    A string or binary value stands with its length; true is 1.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def add(self, name: str, values: pa.Array) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_string(values.type):
            numbers = pc.utf8_length(values)
        elif pa.types.is_binary(values.type):
            numbers = pc.binary_length(values)
        else:
            numbers = values
        numbers = numbers.cast(pa.float64(), safe=False).drop_null()
        of_batch = {"rows": float(len(values)), "missing": float(values.null_count)}
        finite = numbers.filter(pc.is_finite(numbers))
        if len(finite):
            of_batch |= {"least": pc.min(finite).as_py(), "most": pc.max(finite).as_py(), "sum": pc.sum(finite).as_py()}
            of_batch["numbers"] = float(len(finite))
        self.merge(name, of_batch)

    def merge(self, name: str, other: Mapping[str, float]) -> None:
        """Add the figures of other rows."""
        mine = self.found.setdefault(name, {})
        for figure, value in other.items():
            before = mine.get(figure)
            if before is not None:
                value = {"least": min(before, value), "most": max(before, value)}.get(figure, before + value)
            mine[figure] = value

    def to_metrics(self) -> dict[str, float]:
        """As the metrics of a part: `column/figure`."""
        return {f"{name}/{figure}": value for name, of in self.found.items() for figure, value in of.items()}


def column_card(columns: Mapping[str, str], parts: Iterable[Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each column its type, missing values, least, most and mean, from the metrics of the parts.

    least, most, mean: None where no row has a number.
    """
    total = ColumnFigures()
    for metrics in parts:
        of_part: dict[str, dict[str, float]] = {}
        for key, value in metrics.items():
            name, slash, figure = key.rpartition("/")
            if slash:
                of_part.setdefault(name, {})[figure] = value
        for name, figures in of_part.items():
            total.merge(name, figures)
    return [_line(name, kind, total.found.get(name, {})) for name, kind in sorted(columns.items())]


def _line(name: str, kind: str, figures: Mapping[str, float]) -> dict[str, Any]:
    numbers = figures.get("numbers")
    return {
        "column": name,
        "type": kind,
        "of": MEASURED.get(kind, "values"),
        "missing": int(figures.get("missing", 0)),
        "least": figures.get("least"),
        "most": figures.get("most"),
        "mean": figures["sum"] / numbers if numbers else None,
    }

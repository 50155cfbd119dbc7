"""What the data card says of the columns that pass through, counted where rows are written and added up over shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.data.reading.media import SIZES

if TYPE_CHECKING:
    import pyarrow as pa

SIZE = "\t"
"""Between the name of a column and that of a size of its values, in names of figures."""

MEASURED = {"string": "characters", "binary": "bytes", "image": "bytes", "audio": "bytes"}
LISTS = "items"
"""What the figures of a column are of, where they are not of its values."""


class ColumnFigures:
    """Of some columns: rows, missing values, and the least, the most and the sum of those that are finite numbers.

    A string or binary value stands with its length; true is 1.
    """

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def add(self, name: str, values: pa.Array, kind: str = "") -> None:
        """kind: the type of the column where it is an image or audio, whose sizes are columns of figures too."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_string(values.type):
            numbers = pc.utf8_length(values)
        elif pa.types.is_binary(values.type):
            numbers = pc.binary_length(values)
            if kind in SIZES:
                self._add_sizes(name, values, kind)
        elif pa.types.is_list(values.type):
            numbers = pc.list_value_length(values)
        else:
            numbers = values
        numbers = numbers.cast(pa.float64(), safe=False).drop_null()
        of_batch = {"rows": float(len(values)), "missing": float(values.null_count)}
        finite = numbers.filter(pc.is_finite(numbers))
        if len(finite):
            of_batch |= {"least": pc.min(finite).as_py(), "most": pc.max(finite).as_py(), "sum": pc.sum(finite).as_py()}
            of_batch["numbers"] = float(len(finite))
        self.merge(name, of_batch)

    def _add_sizes(self, name: str, values: pa.Array, kind: str) -> None:
        import pyarrow as pa

        found: dict[str, list[float]] = {}
        for value in values:
            for size, number in SIZES[kind](value.as_py()).items() if value.is_valid else ():
                found.setdefault(size, []).append(number)
        for size, numbers in found.items():
            self.add(f"{name}{SIZE}{size}", pa.array(numbers, pa.float64()))

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
    lines = [_line(name, kind, total.found.get(name, {})) for name, kind in sorted(columns.items())]
    return [line | _sizes(line["column"], total.found) for line in lines]


def _sizes(column: str, found: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Least and most of each size of an image or audio column: {"sizes": {"width": [28, 640], ...}}."""
    of_column = {
        name.removeprefix(f"{column}{SIZE}"): of for name, of in found.items() if name.startswith(column + SIZE)
    }
    sizes = {size: [of["least"], of["most"]] for size, of in sorted(of_column.items()) if "least" in of}
    return {"sizes": sizes} if sizes else {}


def _line(name: str, kind: str, figures: Mapping[str, float]) -> dict[str, Any]:
    numbers = figures.get("numbers")
    return {
        "column": name,
        "type": kind,
        "of": LISTS if kind.startswith("list<") else MEASURED.get(kind, "values"),
        "missing": int(figures.get("missing", 0)),
        "least": figures.get("least"),
        "most": figures.get("most"),
        "mean": figures["sum"] / numbers if numbers else None,
    }

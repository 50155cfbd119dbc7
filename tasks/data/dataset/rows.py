"""A split of a `dataset` artifact, opened once; nothing is decoded before it is asked for.

rows = open_split(data, "train", ["label", "photo"])
rows.column("label")        # a list of Python values, in frozen order
rows.value("photo", 7)      # the encoded bytes of one image
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra.errors import StageError
from tasks.data.dataset.layout import split_files
from tasks.data.dataset.row_files import schema_of, table_of

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.stage import InputArtifact


class Rows:
    """Columns of a split in frozen order. Arrow tables never change, so any number of threads may read one."""

    def __init__(self, table: pa.Table) -> None:
        self._rows = int(table.num_rows)
        self._columns = {name: table.column(name) for name in table.schema.names}

    def __len__(self) -> int:
        return self._rows

    @property
    def names(self) -> list[str]:
        """The columns that were asked for."""
        return list(self._columns)

    def column(self, name: str) -> list[Any]:
        """All values of a column as Python values: for cheap ones (ids, labels, numbers, texts)."""
        found: list[Any] = self._columns[name].to_pylist()
        return found

    def value(self, name: str, i: int) -> Any:
        """Row i's value in a column; of an image, audio or binary column the encoded bytes. None: it is missing.

        Only this value is copied. Raises IndexError where there is no such row.
        """
        if not -self._rows <= i < self._rows:
            raise IndexError(f"row {i} of {self._rows}")
        return self._columns[name][i].as_py()


def open_split(data: InputArtifact, split: str, columns: Sequence[str]) -> Rows:
    """Some columns of one split. Raises StageError if the split or a column is missing, or the split is empty.

    Files of Arrow are memory-mapped; those of Parquet are one Arrow table in memory.
    """
    import pyarrow as pa

    try:
        files = split_files(data.path, split)
    except StageError as error:
        raise StageError(error.what, where=data.stage, hint=error.hint) from error
    empty = StageError(
        f"split {split!r} is empty", where=data.stage, hint="Add data, or give the split a larger share."
    )
    if not files:
        raise empty  # it has no columns that could be missing
    schema = schema_of(files[0])
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise StageError(
            f"split {split!r} has no column {missing[0]!r}",
            where=data.stage,
            hint=f"It has: {', '.join(schema.names)}. {_where_from(missing[0])}",
        )
    wanted = dict.fromkeys(columns)
    nothing = pa.schema([schema.field(name) for name in wanted]).empty_table()
    table = pa.concat_tables([nothing, *(table_of(file, list(wanted)) for file in files)])
    if table.num_rows == 0:
        raise empty
    return Rows(table)


def _where_from(column: str) -> str:
    if column == "label":
        return "Labels come from the dataset stage's `label`."
    return "A source's `columns` names what passes through to the dataset."

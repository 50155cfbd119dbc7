"""A dataset artifact as Hugging Face's `datasets` opens it: in one line, with features where it holds images or lists.

    datasets.load_dataset("FOLDER")                                                        # with Arrow files
    datasets.load_dataset("parquet", data_files={"train": "FOLDER/train/*.parquet"})       # with Parquet files

Arrow files have a README.md beside them that says what their columns are. Parquet files need none and have none: what a
dataset of theirs is made of has not changed since its first version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def features(columns: Sequence[str], types: Mapping[str, str], labels: Sequence[str] | None) -> list[dict[str, Any]]:
    """`features` of a dataset card. columns: as in `dataset.json`; types: of those that pass through."""
    return [_feature(name, types.get(name, "string"), labels if name == "label" else None) for name in columns]


def _feature(name: str, kind: str, labels: Sequence[str] | None) -> dict[str, Any]:
    if labels is not None:
        return {"name": name, "dtype": {"class_label": {"names": {str(i): label for i, label in enumerate(labels)}}}}
    if kind.startswith("list<"):
        return {"name": name, "list": kind.removeprefix("list<").removesuffix(">")}
    return {"name": name, "dtype": {"json": "string"}.get(kind, kind)}


def readme(found: Sequence[dict[str, Any]], splits: Sequence[str]) -> str:
    """README.md of a dataset with Arrow files. splits: those with rows."""
    import yaml

    files = [{"split": split, "path": f"{split}/*.arrow"} for split in splits]
    head = {
        "configs": [{"config_name": "default", "data_files": files}],
        "dataset_info": {"features": list(found)},
    }
    text = yaml.safe_dump(head, sort_keys=False, allow_unicode=True)
    line = opened_with(splits, arrow=True)
    body = f"A dataset made by Forgeline. To open this folder:\n\n```python\nimport datasets\n\n{line}\n```\n"
    return f"---\n{text}---\n\n{body}"


def opened_with(splits: Sequence[str], *, arrow: bool) -> str:
    """The line that opens the artifact's folder, for the report."""
    if arrow:
        return 'datasets.load_dataset("FOLDER")'
    files = ", ".join(f'"{split}": "FOLDER/{split}/*.parquet"' for split in splits)
    return f'datasets.load_dataset("parquet", data_files={{{files}}})'

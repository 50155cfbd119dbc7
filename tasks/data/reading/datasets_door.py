"""Datasets as Hugging Face's `datasets` has them: its prepared files, and what its features say about their columns.

A split of a hub dataset is prepared by `datasets` itself, in its cache and in constant memory, and lies there as Arrow
files; so does what `save_to_disk` wrote. The schema of such a file names the features: a ClassLabel's numbers become
its names, a Translation one string column per language. Images and audio stay encoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra import source_files
from infra.errors import StageError
from infra.source_files import SourceLocation

if TYPE_CHECKING:
    import pyarrow as pa

    from tasks.data.reading.sources import Source

Convert = Callable[[Any], Any]
INFO = "dataset_info.json"
"""Beside the Arrow files of a split in the cache of datasets."""


def prepared_files(source: Source, where: str) -> list[tuple[str, SourceLocation]]:
    """(name, place) of the Arrow files of the source's split. What the local cache has at this commit asks nobody.

    Raises StageError where the hub and the cache both have none, and on a split that does not exist.
    """
    import datasets

    assert source.dataset is not None and source.revision is not None
    folder = _cached(source)
    if folder is None:
        try:
            builder = datasets.load_dataset_builder(source.dataset, source.config, revision=source.revision)
            if type(builder).__module__.startswith("datasets.packaged_modules.cache."):
                raise ConnectionError("of another commit is what the cache has")  # datasets would take it
            builder.download_and_prepare()
        except Exception as error:  # of the network, the hub, the data: datasets raises what it meets
            raise not_had(source.dataset, source.revision, error, where) from error
        folder, known, stem = Path(builder.cache_dir), list(builder.info.splits or {}), builder.dataset_name
    else:
        known = list(json.loads((folder / INFO).read_text(encoding="utf-8")).get("splits") or {})
        stem = _stem(source.dataset)
    if source.split not in known:
        raise StageError(
            f"{source.dataset} has no split {source.split!r}", where=where, hint=f"It has: {', '.join(known)}."
        )
    pattern = f"{stem}-{source.split}"
    files = [file for file in sorted(folder.glob(f"{pattern}*.arrow")) if _is_shard(file.stem, pattern)]
    return [(f"{source.dataset}/{file.name}", source_files.local(file)) for file in files]


def _cached(source: Source) -> Path | None:
    """Where the cache of datasets has this configuration at this commit; without `config` the one called `default`.

    A folder has its name, the commit, only once it is whole.
    """
    import datasets

    owner, _, name = str(source.dataset).partition("/")
    root = Path(datasets.config.HF_DATASETS_CACHE) / f"{owner}___{_stem(name)}" / (source.config or "default")
    return next((file.parent for file in sorted(root.glob(f"*/{source.revision}/{INFO}"))), None)


def _stem(name: str) -> str:
    from datasets.naming import camelcase_to_snakecase

    return str(camelcase_to_snakecase(name.rpartition("/")[2]))


def not_had(name: str, revision: str, error: BaseException, where: str) -> StageError:
    """What is wrong and what to do, where a dataset of the hub could not be had."""
    from huggingface_hub import errors

    met: list[BaseException] = [error]
    while (cause := met[-1].__cause__ or met[-1].__context__) is not None and cause not in met:
        met.append(cause)

    def of(*kinds: type[BaseException]) -> bool:
        return any(isinstance(one, kinds) for one in met)

    said = (str(error).strip() or repr(error)).splitlines()[0]
    if of(errors.GatedRepoError) or "is a gated dataset" in said:
        reason, advice = (
            "it is gated, and HF_TOKEN is of nobody who may read it",
            f"Ask for access on the page of datasets/{name} on the hub, then set HF_TOKEN to a token of that account.",
        )
    elif of(errors.RevisionNotFoundError):
        reason, advice = "it has no such commit", "Copy the 40 digits from the history of its files on the hub."
    elif of(errors.RepositoryNotFoundError) or "doesn't exist on the Hub" in said:
        reason, advice = "it is not on the hub, or is private", "Check the name; what is private needs HF_TOKEN."
    elif of(ConnectionError, errors.OfflineModeIsEnabled, errors.LocalEntryNotFoundError) or "find cache for" in said:
        reason, advice = (
            "the hub cannot be reached, and the cache does not have it at this commit",
            "Check the network, HF_ENDPOINT and HF_HUB_OFFLINE; or run once where there is a network, and bring the "
            "cache (HF_HOME). A `config` that is not called `default` is found in the cache by its name alone.",
        )
    else:
        reason, advice = said, "Check the name, `config`, the commit, HF_TOKEN and the network."
    return StageError(f"cannot get {name} at {revision[:12]}: {reason}", where=where, hint=advice)


def _is_shard(stem: str, pattern: str) -> bool:
    return stem == pattern or stem.removeprefix(pattern)[1:6].isdigit()


def features_of(schema: pa.Schema) -> Mapping[str, Any]:
    """The features that the schema of an Arrow file names; where it names none, its types as they are."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    found: Mapping[str, Any] = (metadata.get("info") or {}).get("features") or {}
    return found or {field.name: {"_type": "Value", "dtype": str(field.type)} for field in schema}


class FeatureColumns:
    """Columns of an Arrow file as the features in its schema mean them."""

    def __init__(self, schema: pa.Schema) -> None:
        features = features_of(schema)
        self._converters: dict[str, Convert] = {}
        self._stored = {name: name for name in schema.names}
        self._languages: dict[str, tuple[str, str]] = {}
        for name, feature in features.items():
            if isinstance(feature, dict) and feature.get("_type") == "Translation":
                self._stored.pop(name, None)
                self._languages |= {language: (name, language) for language in feature["languages"]}
            elif convert := _converter(feature):
                self._converters[name] = convert
        for language, (name, _) in self._languages.items():
            self._stored[language] = name

    @property
    def names(self) -> list[str]:
        """The columns there are, by the names that a source uses."""
        return list(self._stored)

    def stored(self, wanted: Collection[str]) -> list[str]:
        """The file's columns that hold them."""
        return sorted({self._stored[name] for name in wanted})

    def converted(self, record: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
        """The wanted columns of a record of the file."""
        found: dict[str, Any] = {}
        for name in wanted:
            value = record[self._stored[name]]
            if name in self._languages:
                value = value and value[name]
            elif value is not None and name in self._converters:
                value = self._converters[name](value)
            found[name] = value
        return found


def _converter(feature: Any) -> Convert | None:
    """What turns the stored numbers of a ClassLabel, or of a list of them, into names; -1 is no label."""
    if isinstance(feature, list) and len(feature) == 1:
        inner = _converter(feature[0])
    elif isinstance(feature, dict) and feature.get("_type") in ("Sequence", "List", "LargeList"):
        inner = _converter(feature.get("feature"))
    elif isinstance(feature, dict) and feature.get("_type") in ("Image", "Audio"):
        return _with_bytes
    elif isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
        names = feature["names"]
        return lambda number: names[number] if number >= 0 else None
    else:
        return None
    return None if inner is None else lambda values: [inner(value) for value in values]


def _with_bytes(value: Any) -> Any:
    """An image or sound with its bytes, where datasets has kept but the path of a file in its cache."""
    if not isinstance(value, dict) or value.get("bytes") is not None or not value.get("path"):
        return value
    import datasets

    file, cache = Path(value["path"]), Path(datasets.config.HF_CACHE_HOME)
    inside = file.is_file() and file.absolute().is_relative_to(cache.absolute())
    return {**value, "bytes": file.read_bytes()} if inside else value

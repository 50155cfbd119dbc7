"""Reading the manifest of an artifact: there and whole, not there, or damaged."""

from __future__ import annotations

from typing import Any

from infra.artifacts import FileEntry, Manifest, payload_digest
from infra.checksum import FORMAT, OtherVersion
from infra.errors import CorruptArtifact, StoreError
from infra.json_values import parse_json
from infra.keys import digest
from infra.objects import Objects

REMAKE = "Run the pipeline again: the artifact is quarantined and made again."


def manifest_path(kind: str, key: str) -> str:
    """Store path of the manifest of the artifact under a key."""
    return f"artifacts/{kind}/{key}/manifest.json"


def copy_path(kind: str, key: str, attempt: str) -> str:
    """Store path of a copy of the manifest of one attempt, beside its files. It commits nothing.

    Where the manifest itself is damaged, it is written again from that (`infra.quarantine`), instead of what took days
    to train.
    """
    return f"artifacts/{kind}/{key}/{attempt}/manifest.json"


def read_manifest(objects: Objects, kind: str, key: str) -> Manifest | None:
    """The committed artifact under a key, by one reading; None if there is none. Raises CorruptArtifact."""
    try:
        data = objects.read_bytes(manifest_path(kind, key))
    except FileNotFoundError:
        return None
    return parse_manifest(data, kind, key)


def parse_manifest(data: bytes, kind: str, key: str) -> Manifest:
    """The manifest that `data` is. Raises CorruptArtifact, OtherVersion."""
    parsed: Any = None
    try:
        parsed = parse_json(data)
        manifest = Manifest.from_json(parsed)
    except OtherVersion:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, StoreError) as error:
        raise CorruptArtifact(_damage(parsed, key, error), kind=kind, key=key, hint=REMAKE) from error
    if (manifest.kind, manifest.key) != (kind, key) or manifest.digest != payload_digest(manifest.payload):
        raise CorruptArtifact("the manifest contradicts itself or its place", kind=kind, key=key, hint=REMAKE)
    if manifest.format != FORMAT and not _made_of(key, kind, manifest.identity):
        raise CorruptArtifact("its identity is not the one its key was made of", kind=kind, key=key, hint=REMAKE)
    return manifest


def _damage(parsed: Any, key: str, error: Exception) -> str:
    """What is wrong with a manifest, and which parts of it are in order by digests of their own."""
    if not isinstance(parsed, dict):
        return f"the manifest is not valid JSON ({error})" if parsed is None else "the manifest is no JSON object"
    what = f"the manifest is damaged: {error.what if isinstance(error, StoreError) else error}"
    try:
        files = payload_digest([FileEntry.from_json(entry) for entry in parsed["payload"]]) == parsed["digest"]
        identity = _made_of(key, str(parsed["kind"]), parsed["identity"])
    except (KeyError, TypeError, ValueError, AttributeError, StoreError):
        return what
    whole = [name for name, right in (("list of files", files), ("identity", identity)) if right]
    return f"{what}; its {' and its '.join(whole)} agree with their digests" if whole else what


def _made_of(key: str, kind: str, identity: dict[str, Any]) -> bool:
    return key in (digest(identity), part_key(kind, identity))


def part_key(kind: str, identity: dict[str, Any]) -> str:
    """The key of a part of data (`tasks/data/parts/parts.py`)."""
    return digest({"part": kind, **identity})

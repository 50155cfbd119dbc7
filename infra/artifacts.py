"""What an artifact is: an immutable set of files under a key, described by a manifest whose presence is completion.

    artifacts/<kind>/<key>/<attempt>/payload/...   what the stage made; its content digest is what dependants see
    artifacts/<kind>/<key>/<attempt>/records/...   evidence (loss curves, samples, logs); verified, but not identity,
                                                   because it holds timings that no two runs share
    artifacts/<kind>/<key>/manifest.json           written last, create-only
    files/<sha256>                                 payload files that several artifacts share, by their content

`kind` is the stage kind that made it (pretrain, export ...), `type` is what it can be used as (dataset, model ...).
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, TypedDict

from infra.checksum import FORMAT, sealed, unsealed
from infra.errors import StoreError
from infra.json_values import check_types
from infra.keys import content_digest
from infra.relative_path import safe_relative_path

DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: POSIX path relative to its `payload` or `records` folder, size in bytes, sha256 hex.

    shared: its bytes lie under `shared_path`, where other artifacts may have them too, not under the attempt.
    """

    path: str
    size: int
    sha256: str
    shared: bool = False

    @property
    def shared_path(self) -> str:
        """Store path of the bytes of a shared file."""
        return f"files/{self.sha256}"

    def within(self, prefix: str) -> str:
        """Store path of the bytes, for an entry of the folder `prefix`."""
        return self.shared_path if self.shared else f"{prefix}/{self.path}"

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"path": self.path, "size": self.size, "sha256": self.sha256}
        return {**found, "shared": True} if self.shared else found

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> FileEntry:
        """Raises StoreError on a path that escapes, or a digest that is none."""
        sha = str(data["sha256"])
        if not DIGEST.fullmatch(sha):
            raise StoreError(f"{sha[:80]!r} is not a sha256", hint="The manifest is damaged or was tampered with.")
        return cls(safe_relative_path(data["path"]), int(data["size"]), sha, bool(data.get("shared", False)))


@dataclass(frozen=True)
class ArtifactRef:
    """A reference to an artifact: what travels between tasks instead of bytes."""

    kind: str
    key: str
    digest: str
    type: str

    @property
    def prefix(self) -> str:
        return f"artifacts/{self.kind}/{self.key}"


class OldManifest(TypedDict):
    """The fields of a manifest from before checksums."""

    kind: str
    type: str
    key: str
    attempt: str
    digest: str
    payload: list[dict[str, Any]]
    records: list[dict[str, Any]]
    identity: dict[str, Any]
    inputs: dict[str, list[dict[str, Any]]]
    producer: dict[str, Any]
    metrics: dict[str, float]
    timings: dict[str, float]
    format: int


OLD_FIELDS = frozenset(OldManifest.__annotations__)


@dataclass(frozen=True)
class Manifest:
    """Everything known about an artifact. `identity` is the full payload whose hash is `key`.

    warnings: sentences for the user, shown whenever the artifact is made or used; part of no key.
    """

    kind: str
    type: str
    key: str
    attempt: str
    digest: str
    payload: list[FileEntry]
    records: list[FileEntry]
    identity: dict[str, Any]
    inputs: dict[str, Any] = field(default_factory=dict)
    producer: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def ref(self) -> ArtifactRef:
        return ArtifactRef(self.kind, self.key, self.digest, self.type)

    @property
    def size(self) -> int:
        """Bytes of the payload: what ships."""
        return sum(entry.size for entry in self.payload)

    def to_json(self) -> dict[str, Any]:
        parts = {part: [entry.to_json() for entry in getattr(self, part)] for part in ("payload", "records")}
        whole = {**asdict(self), **parts}
        if self.format == FORMAT:
            return sealed(whole)
        return {name: value for name, value in whole.items() if name in OLD_FIELDS}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Parse and check a manifest read from a store; one from before checksums has format 1.

        Raises ValueError, KeyError or TypeError on a damaged one, OtherVersion, StoreError on an escaping path.
        """
        whole = unsealed(data, OLD_FIELDS)
        if "format" in whole:
            check_types(whole, OldManifest)
        data = whole if "format" in whole else {**whole, "format": FORMAT}
        entries = {part: [FileEntry.from_json(entry) for entry in data[part]] for part in ("payload", "records")}
        warnings = [str(warning) for warning in data.get("warnings", [])]
        return cls(**{**data, **entries, "warnings": warnings})


def payload_digest(entries: list[FileEntry]) -> str:
    """Content digest of an artifact's payload: independent of attempt, time and machine."""
    return content_digest((entry.path, entry.sha256) for entry in entries)

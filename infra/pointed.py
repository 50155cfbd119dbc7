"""What an entry of a ref points to: the artifact and its content have to be the ones that the entry names."""

from __future__ import annotations

from infra.artifacts import Manifest
from infra.errors import WrongReference
from infra.refs import RefEntry
from infra.store import Store


def pointed(store: Store, entry: RefEntry) -> Manifest | None:
    """The artifact an entry points to; None where it is not in the store.

    Raises WrongReference where the artifact that stands there has other content: it was made again since, or the entry
    is damaged. The artifact itself is not in doubt then. Raises CorruptArtifact where it is.
    """
    manifest = store.manifest(entry.kind, entry.key)
    if manifest is not None and manifest.digest != entry.digest:
        again = f"forgeline promote {entry.name} {entry.kind}/{entry.key[:12]} --force --reason TEXT"
        raise WrongReference(
            f"entry {entry.number} names other content ({entry.digest[:12]}) than {entry.kind} {entry.key[:12]} has "
            f"({manifest.digest[:12]}): that was made again since, or the entry is damaged",
            where=f"refs/{entry.name}",
            hint=f"The artifact stays. If it is what the ref should name: {again}. "
            f"Else, to go back: forgeline rollback {entry.name}.",
        )
    return manifest

"""The store: artifacts, and the objects beside them, in a folder or an S3 bucket, with the same promises on both.

    store = open_store("s3://bucket/prefix")        # or "file:///data/store", or a plain folder
    manifest = store.manifest("pretrain", key)      # None: nothing was committed under this key
    path = store.fetch(manifest)                    # a local folder; every byte verified before it is returned

Layout (see `infra.artifacts` for what an artifact is):

    artifacts/<kind>/<key>/<attempt>/{payload,records}/...   files; nobody looks at them before the manifest is there
    artifacts/<kind>/<key>/<attempt>/manifest.json           a copy, should the manifest be damaged; it commits nothing
    artifacts/<kind>/<key>/manifest.json                     create-only, written last: it is the commit
    files/<sha256>                                           files that several artifacts share
    quarantine/<kind>/<key>/<attempt>-<n>/manifest.json      manifests of artifacts found damaged
    quarantine/files/<sha256>/<n>                            shared files found damaged
    trash/<kind>/<key>/<attempt>/manifest.json               manifests that nothing needs (`infra.collector`)
    claims/ refs/ checkpoints/ runs/                         see `infra.claims`, `infra.refs`, `infra.checkpoints`

A process killed at any moment leaves an attempt folder nobody points to, or a committed artifact; never a mix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from infra.artifacts import FileEntry, Manifest, payload_digest
from infra.cache import fetch_files
from infra.errors import CorruptArtifact, StageError, StoreError
from infra.keys import file_digest
from infra.manifest_file import REMAKE, copy_path, read_manifest
from infra.objects import Objects, checked, json_bytes
from infra.patience import Patience
from infra.quarantine import set_artifact_aside
from infra.transfer import DamagedFiles, OnProgress, Progress, folder_files, upload


class Store(Objects):
    """A folder of objects with artifacts in it. Made by `infra.open_store`."""

    patience = Patience(0.0)

    def manifest(self, kind: str, key: str) -> Manifest | None:
        """The committed artifact under a key, or None. Raises CorruptArtifact if its manifest is damaged.

        What looks damaged is read again (`Objects.glances`).
        """
        return self.again(lambda: read_manifest(self, kind, key), CorruptArtifact, self.glances)

    def commit(
        self,
        *,
        kind: str,
        type: str,
        key: str,
        attempt: str,
        payload_dir: Path,
        records_dir: Path | None = None,
        shared: Sequence[FileEntry] = (),
        identity: dict[str, Any],
        inputs: dict[str, Any] | None = None,
        producer: dict[str, Any] | None = None,
        metrics: dict[str, float] | None = None,
        timings: dict[str, float] | None = None,
        warnings: Sequence[str] = (),
        fence: Callable[[], None] | None = None,
        on_progress: OnProgress | None = None,
    ) -> Manifest:
        """Store a stage's files and commit them; returns the artifact that now stands under the key.

        That is the winner's where another attempt committed first; this attempt's files are then removed.

        attempt: a name nobody else uses. shared: further files of the payload, stored by `share`. fence: called right
        before the commit; raises LeaseLost if the work was taken over. on_progress: (bytes done, bytes in all). Raises
        StageError if there are no files or a metric is not a number, StoreError on links and failing storage.
        """
        if (standing := self.manifest(kind, key)) is not None:
            return standing
        place = f"artifacts/{kind}/{key}"
        folders = {"payload": payload_dir, **({"records": records_dir} if records_dir else {})}
        sizes = {part: sum(f[2] for f in folder_files(folder)) for part, folder in folders.items() if folder.is_dir()}
        progress = Progress(sum(sizes.values()), on_progress)
        files: dict[str, list[FileEntry]] = {"payload": [], "records": []}
        for part, folder in folders.items():
            files[part] = upload(self, f"{place}/{attempt}/{part}", folder, progress)
        files["payload"] = sorted([*files["payload"], *shared], key=lambda entry: entry.path)
        if not files["payload"]:
            raise StageError("it left no file to keep", where=place, hint="A stage writes what it makes to job.output.")
        manifest = Manifest(
            kind=kind,
            type=type,
            key=key,
            attempt=attempt,
            digest=payload_digest(files["payload"]),
            payload=files["payload"],
            records=files["records"],
            identity=identity,
            inputs=inputs or {},
            producer=producer or {},
            metrics=metrics or {},
            timings=timings or {},
            warnings=list(warnings),
        )
        try:
            data = json_bytes(manifest.to_json())
        except ValueError as error:
            names = [name for name, value in manifest.metrics.items() if value - value != 0]
            what = f"metrics that are not finite numbers: {', '.join(names) or error}"
            raise StageError(what, where=place, hint="Training diverged, or a metric is undefined here.") from error
        if producer:  # a part of data has none, and is made again sooner than its copy would be worth
            self.write_bytes(copy_path(kind, key, attempt), data)
        if fence is not None:
            fence()
        if self.create(f"{place}/manifest.json", data):
            return manifest
        winner = self.manifest(kind, key)
        if winner is None:
            raise StoreError("the manifest that won was removed at once", where=place, hint="Run again.")
        if winner.attempt != attempt:
            self.delete_tree(f"{place}/{attempt}")
        return winner

    def share(self, file: Path, name: str) -> FileEntry:
        """Store a file by its content, once for all artifacts that have it; `name` is its path in the payload."""
        entry = FileEntry(checked(name), file.stat().st_size, file_digest(file), shared=True)
        if not self.exists(entry.shared_path):
            size, sha = self.put_file(file, entry.shared_path)
            if (size, sha) != (entry.size, entry.sha256):
                self.delete(entry.shared_path)
                raise StoreError("the file changed while it was stored", where=str(file), hint="Run again.")
        return entry

    def fetch(
        self, manifest: Manifest, *, only: Collection[str] | None = None, on_progress: OnProgress | None = None
    ) -> Path:
        """A local folder with the verified payload, read-only. Raises CorruptArtifact if any byte differs.

        only: paths of the files wanted, instead of all; the folder may hold others too, unverified.
        A folder store returns its own folder, without a copy; from S3, files go to a local cache (see `infra.cache`).
        """
        wanted = [entry for entry in manifest.payload if only is None or entry.path in only]
        return self._fetch(manifest, "payload", wanted, on_progress, partial=only is not None)

    def fetch_shared(self, entry: FileEntry) -> Path:
        """The local, verified file of one shared entry. Raises StoreError where it is damaged."""
        try:
            return self.again(lambda: fetch_files(self, "files", [entry]), DamagedFiles, self.glances) / entry.path
        except DamagedFiles as error:
            hint = (
                "Run `forgeline verify --all --set-aside`, which sets aside what has it; then run the pipeline again."
            )
            raise StoreError(
                f"a file of several artifacts is damaged: {error.what}", where=error.where, hint=hint
            ) from error

    def fetch_records(self, manifest: Manifest, *, on_progress: OnProgress | None = None) -> Path | None:
        """As `fetch`, for the evidence kept beside the payload; None where the stage left none."""
        return self._fetch(manifest, "records", manifest.records, on_progress) if manifest.records else None

    def _fetch(
        self,
        manifest: Manifest,
        part: str,
        entries: list[FileEntry],
        on_progress: OnProgress | None,
        *,
        partial: bool = False,
    ) -> Path:
        prefix = f"{manifest.ref.prefix}/{manifest.attempt}/{part}"
        try:
            return self.again(
                lambda: fetch_files(self, prefix, entries, on_progress, partial=partial), DamagedFiles, self.glances
            )
        except DamagedFiles as error:
            raise CorruptArtifact(
                f"{part} is damaged: {error.what}",
                kind=manifest.kind,
                key=manifest.key,
                attempt=manifest.attempt,
                hint=REMAKE,
            ) from error

    def quarantine(self, kind: str, key: str, attempt: str | None = None) -> str | None:
        """Set a damaged artifact aside, so that it can be made again; its files stay under their attempt.

        It is read again first, more than once; one whose manifest and bytes agree is left alone (`infra.quarantine`).
        attempt: leave it alone if another attempt has been committed meanwhile; pass `CorruptArtifact.attempt`, because
        another run may have seen the same damage and made it again already.
        Returns the store path of the manifest's new place, or None if there was nothing to set aside. If the manifest
        alone was damaged it is written again from its copy, so the artifact stands afterwards. Raises StoreError where
        the store fails, or answers otherwise than it holds.
        """
        return set_artifact_aside(self, kind, key, attempt or None)

"""The contract of a stage: what it is called, what it reads, what it makes.

A stage is one file in `tasks/stages/`, named for its kind. The file defines a `Params` model (identity: everything that
changes the result), a `run` function, and one `STAGE = Stage(...)`. Living in that folder is its registration.

    class Params(StageParams):
        model: Annotated[str, Input("model")]
        keep: float = Field(0.7, gt=0, le=1, description="Share of FFN neurons that stay.")

    def run(job: Job[Params]) -> dict[str, float]:
        source = job.input("model")           # verified files in source.path
        ...                                   # write what ships to job.output, evidence to job.records
        return {"parameters": n}              # summary metrics

    STAGE = Stage(kind="prune", version=1, makes="model", params=Params, run=run)

Only light imports at the top of a stage file: `forgeline plan` imports them all. torch and friends are imported inside
`run`, which executes in a job process.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from infra.artifacts import FileEntry, Manifest
from infra.execution import Execution
from infra.manifest_file import part_key
from infra.sources_read import SourceFile, compare
from infra.terminal import printable

if TYPE_CHECKING:
    from infra.checkpoints import CheckpointStore
    from infra.store import Store
    from infra.tracking import Tracker


MEGABYTE = 1_000_000
OR = " or "


@dataclass(frozen=True)
class Input:
    """Field marker: the value names a stage (`base`), one split of it (`functions.test`), or `ref:NAME`.

    `ref:NAME or STAGE` is the ref where there is one, else the stage. `types` are the artifact types taken. champion:
    the value is the bare name of a ref, which may not be there yet (`tasks/plan/chosen_inputs.py`). trained: a model
    must have been trained for an objective. The field enters the key as the content digest of what it names.
    """

    types: tuple[str, ...]
    champion: bool
    trained: bool

    def __init__(self, *types: str, champion: bool = False, trained: bool = False) -> None:
        object.__setattr__(self, "types", types)
        object.__setattr__(self, "champion", champion)
        object.__setattr__(self, "trained", trained)


@dataclass(frozen=True)
class AddedLater:
    """Field marker: it came when artifacts of this stage version were made, so at its default it enters no key."""


@dataclass(frozen=True)
class Located:
    """Field marker: the value says where something is, not what it is; it enters the key through `Stage.sources`.

    path: the value is a path or glob, relative to the pipeline file (else it is a filter such as an exclude list).
    """

    path: bool = True


class StageParams(BaseModel):
    """Base of every stage's identity parameters: unknown fields are refused, values do not change after parsing."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def types_taken(self, field: str, types: tuple[str, ...]) -> tuple[str, ...]:
        """Of the artifact types that an input field takes, those that go with the other fields."""
        return types


P = TypeVar("P", bound=StageParams)


@dataclass(frozen=True)
class InputArtifact:
    """An input as a stage sees it: `path` holds the verified payload, unless the stage is lazy."""

    stage: str
    path: Path
    manifest: Manifest
    split: str | None = None


class Progress(Protocol):
    """Receives what the live view and the loss curves show; cheap enough to be called every step."""

    def __call__(self, step: int, total: int, **values: float) -> None: ...


@dataclass
class Job(Generic[P]):
    """What a stage's `run` gets. Rank 0 commits what lies in `output` and `records` once `run` returns."""

    name: str
    params: P
    inputs: dict[str, list[InputArtifact]]
    output: Path
    records: Path
    scratch: Path
    execution: Execution
    progress: Progress
    tracker: Tracker
    checkpoints: CheckpointStore
    stop_requested: Callable[[], bool]
    rank: int = 0
    world_size: int = 1
    micro: int = 0
    """Most examples a rank may hold at once, found by an attempt that ran out of memory. 0: not known."""
    version: int = 0
    previous: Manifest | None = None
    """What this stage of this pipeline made last, whatever it was made of."""
    keyed: Sequence[SourceFile] | None = None
    """The files outside the store that the key was made of; None where there is no key."""
    read: Sequence[SourceFile] | None = None
    """Those that were read (`has_read`)."""
    shared: list[FileEntry] = field(default_factory=list)
    """Files of the payload that `store.share` has stored already; committed with those in `output`."""
    warnings: list[str] = field(default_factory=list)
    """What the user should look at, though the stage goes on. Rank 0's are kept in the manifest; see `warn`."""

    @property
    def store(self) -> Store:
        return self.checkpoints.store

    @property
    def cores(self) -> int:
        """How many processes may work at once."""
        return self.execution.threads if self.execution.threads != "auto" else len(os.sched_getaffinity(0))

    def warn(self, sentence: str) -> None:
        """Tell the user something on the terminal, now and whenever the artifact is reused; the same sentence once.

        Say what is odd, where, and what to do; a stage that is wrong raises StageError instead. It enters no key.
        """
        if (shown := printable(sentence)) not in self.warnings:
            self.warnings.append(shown)

    def bytes_done(self, done: int, total: int) -> None:
        """Progress of work that is measured in bytes."""
        self.progress(done // MEGABYTE, max(total // MEGABYTE, 1), megabytes=1.0)

    def fetch_shared(self, path: str) -> Path:
        """The local, verified file of an entry of `shared`."""
        return self.store.fetch_shared(next(entry for entry in self.shared if entry.path == path))

    def has_read(self, files: Sequence[SourceFile]) -> None:
        """Note the files outside the store that were read, as `Stage.sources` lists them, with the digests of the bytes
        that were read. Raises SourcesChanged where the key was made of others. No stage with `sources` does without.
        """
        if self.keyed is not None:
            compare(self.keyed, files)
        self.read = files

    def input(self, name: str) -> InputArtifact:
        """The single artifact given for field `name`."""
        return self.inputs[name][0]


@dataclass(frozen=True)
class PartKind:
    """What is made: the artifact kind, and `module:function` that makes one part.

    worth_a_process: bytes of input for which another process is worth its start, about a second.
    """

    kind: str
    function: str
    worth_a_process: int = 16 << 20


@dataclass(frozen=True)
class PartSpec:
    """One part: `identity` is all that its content depends on; `arguments` say where things lie; `size` in bytes."""

    identity: dict[str, Any]
    arguments: dict[str, Any] = field(hash=False)
    size: int = 0

    def key(self, kind: PartKind) -> str:
        return part_key(kind.kind, self.identity)


@dataclass(frozen=True)
class Fault:
    """Something wrong with params that pydantic cannot see; `path` is the field's path below the params."""

    path: tuple[str | int, ...]
    message: str


@dataclass(frozen=True)
class Stage(Generic[P]):
    """A kind of stage. `version` is raised when its meaning changes; editing a comment forks nothing.

    warm: modules the warm server has imported before the job is forked; `torch` jobs and light jobs use two servers.
    distributed: may run on several ranks; every rank calls `run`, only rank 0's files are committed.
    lazy: inputs are not fetched before it runs; it takes the files it needs out of the store.
    exclusive: gets every core for itself, because it measures time.
    sources: lists the external files the params point to; their content enters the key. `run` says which it read
        (`Job.has_read`).
    check: faults between params and execution settings, found before anything is launched.
    splits: the splits that its dataset can have rows in; None: those of its input `data`.
    parts: the parts its `run` asks for first, which other machines may have made before
        (`tasks/data/parts/batches.py`).
    refuses: its artifact can say no (a gate, through metric `passed`); dependants then do not run.
    publish: called in the orchestrator once the artifact is committed, to move a ref.
    """

    kind: str
    version: int
    makes: str
    params: type[P]
    run: Callable[[Job[P]], dict[str, float]]
    warm: bool = False
    distributed: bool = False
    lazy: bool = False
    exclusive: bool = False
    sources: Callable[[P], list[SourceFile]] | None = None
    check: Callable[[P, Execution], list[Fault]] | None = None
    splits: Callable[[P], Sequence[str]] | None = None
    parts: Callable[[Job[P]], tuple[PartKind, list[PartSpec]]] | None = None
    refuses: bool = False
    publish: Callable[[Store, Manifest], None] | None = None


@dataclass(frozen=True)
class InputField:
    """One reference found in a stage's params: dotted field path, the text given, the types it accepts.

    optional: the stage does without it where a gate stopped what would have made it, or it is the name of a champion
    that is not there.
    """

    path: str
    text: str
    types: tuple[str, ...]
    optional: bool = False
    champion: bool = False
    trained: bool = False

    @property
    def field(self) -> str:
        """The path without its place in a list: the name under which a job has its inputs."""
        return self.path.partition("[")[0]

    @property
    def ref(self) -> str | None:
        """Name of the ref, where the text names one."""
        return self.text.removeprefix("ref:").partition(OR)[0].strip() if self.text.startswith("ref:") else None

    @property
    def fallback(self) -> str | None:
        """The stage that stands in for a ref that is not there yet."""
        return (self.text.partition(OR)[2].strip() or None) if self.text.startswith("ref:") else None

    @property
    def stage(self) -> str:
        """The stage it names; `ref:NAME` or `champion:NAME` where it names a ref."""
        kind = "champion" if self.champion else "ref"
        return f"{kind}:{self.ref}" if self.ref else self.text.partition(".")[0]

    @property
    def split(self) -> str | None:
        return None if self.text.startswith("ref:") else (self.text.partition(".")[2] or None)


def input_fields(params: BaseModel, prefix: str = "") -> Iterator[InputField]:
    """Every `Input` in a params object, nested models and lists included, in declaration order."""
    for name, info in type(params).model_fields.items():
        value, path = getattr(params, name), f"{prefix}{name}"
        marker = next((m for m in info.metadata if isinstance(m, Input)), None)
        if marker is not None and value is not None:
            many = isinstance(value, list | tuple)
            for i, text in enumerate(value if many else [value]):
                named = f"ref:{text}" if marker.champion else text
                place = f"{path}[{i}]" if many else path
                kind = {"optional": marker.champion, "champion": marker.champion, "trained": marker.trained}
                yield InputField(place, named, marker.types, **kind)
        else:
            for i, item in enumerate(value if isinstance(value, list | tuple) else [value]):
                if isinstance(item, BaseModel):
                    yield from input_fields(item, f"{path}[{i}]." if isinstance(value, list | tuple) else f"{path}.")


def identity_params(params: BaseModel) -> dict[str, Any]:
    """The params that enter a key: everything but where things lie and which stage they come from."""
    kept: dict[str, Any] = {}
    for name, info in type(params).model_fields.items():
        value = getattr(params, name)
        if any(isinstance(m, Input | Located) for m in info.metadata):
            continue
        if AddedLater() in info.metadata and value == info.get_default(call_default_factory=True):
            continue
        kept[name] = _plain(value)
    # Fields a model takes beyond those it declares (`model: {type, ...}` of a pretrain stage) decide just as much.
    kept.update({name: _plain(value) for name, value in (params.model_extra or {}).items()})
    return kept


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity_params(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


@cache
def stages() -> dict[str, Stage[Any]]:
    """Every stage kind by name: one module in `tasks/stages/` each."""
    package = importlib.import_module("tasks.stages")
    names = sorted(found.name for found in pkgutil.iter_modules(package.__path__))
    return {name: importlib.import_module(f"{package.__name__}.{name}").STAGE for name in names}

"""Every error a user can meet, in one screen.

An error says what was wrong, where, and what to do about it. `exit_code` is what the command line returns;
`transient` says whether trying again can help: a bad config is never retried, a dropped connection is.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")
UNSAFE = re.compile(r"trust_remote_code\s*=\s*True|[`'\"]weights_only\b|safe_globals|allow_pickle\s*=\s*True")
"""What libraries recommend and nobody should do because an error says so: each runs code of the file."""


class ForgelineError(Exception):
    """Base of all errors Forgeline raises on purpose; anything else that escapes is a bug.

    Credentials in URLs are cut out of its texts, and libraries' advice to run a file's code, whoever put them there.
    """

    exit_code = 3
    transient = False

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what = without_advice(without_credentials(what))
        self.where = without_credentials(where) if where else where
        self.hint = without_credentials(hint) if hint else hint
        super().__init__(self.__str__())

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  {self.hint}" if self.hint else text

    def within(self, place: str) -> ForgelineError:
        """Itself, with `place` before where it happened, unless that is there already."""
        if not (self.where or "").startswith(place):
            self.where = f"{place}: {self.where}" if self.where else place
            self.args = (str(self),)
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as JSON: the initializers of some take more than exceptions remember."""
        return error_from_json, (self.to_json(),)

    def to_json(self) -> dict[str, Any]:
        """The error as plain JSON, so that it can cross from a job process to the flow."""
        extra = {k: v for k, v in vars(self).items() if k not in ("what", "where", "hint") and isinstance(v, str | int)}
        return {"type": type(self).__name__, "what": self.what, "where": self.where, "hint": self.hint, **extra}


def without_credentials(text: str) -> str:
    """`https://user:password@host/` becomes `https://***@host/`."""
    return CREDENTIALS.sub("***@", text)


def without_advice(text: str) -> str:
    """The text without the sentences of a library that recommend to run code which a file brings along."""
    if not UNSAFE.search(text):
        return text
    sentences = re.split(r"(?<=[.!?:])\s+|\n", text)
    kept = " ".join(one.strip() for one in sentences if one.strip() and not UNSAFE.search(one))
    return f"{kept} (advice to run code that the file brings along is left out)".strip()


def error_from_json(data: dict[str, Any]) -> ForgelineError:
    """Rebuild an error written by `ForgelineError.to_json`; an unknown type becomes a `StageError`."""
    known = {cls.__name__: cls for cls in _descendants(ForgelineError)}
    cls = known.get(data.get("type", ""), StageError)
    error = cls.__new__(cls)
    ForgelineError.__init__(error, data.get("what", json.dumps(data)), where=data.get("where"), hint=data.get("hint"))
    for name, value in data.items():
        if name not in ("type", "what", "where", "hint"):
            setattr(error, name, value)
    return error


def _descendants(cls: type[ForgelineError]) -> list[type[ForgelineError]]:
    return [cls, *(d for child in cls.__subclasses__() for d in _descendants(child))]


@dataclass(frozen=True)
class Problem:
    """One fault in a pipeline file: `where` is file:line, `field` the dotted path, `message` what and what to do."""

    where: str
    field: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.field}: {self.message}" if self.field else f"{self.where}: {self.message}"


class ConfigError(ForgelineError):
    """The pipeline file or an override is wrong; `problems` lists every fault found, not only the first."""

    exit_code = 2

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


class UsageError(ForgelineError):
    """A command was given something it cannot use: an unknown ref, run or option."""

    exit_code = 2


class StageError(ForgelineError):
    """A stage could not do its work (bad input, a crash, out of memory)."""


class OutOfMemory(StageError):
    """A micro-batch did not fit; `micro` examples at once may. The job is started again with so many."""

    def __init__(self, micro: int, *, where: str | None = None) -> None:
        self.micro = micro
        super().__init__("out of memory", where=where, hint=f"It goes on with {micro} examples at once.")


class TransientError(ForgelineError):
    """A failure of the surroundings that another attempt may not meet (lost connection, lost worker)."""

    transient = True


class SourcesChanged(TransientError):
    """A file outside the store is not what the stage's key says, or changed while it was read; `what` names it."""

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        hint = hint or "Run again when whoever writes it is done; writing beside it and renaming avoids this."
        super().__init__(what, where=where, hint=hint)


class LeaseLost(TransientError):
    """This worker's claim on a key was taken over; what it made may not be committed."""


class StoreError(ForgelineError):
    """The store refused or cannot be used: credentials, bucket, permissions, space, missing guarantees."""


class BadStoreUrl(StoreError, UsageError):
    """The name given for a store cannot be one; nothing was tried."""


class StoreUnreachable(StoreError, TransientError):
    """The store did not answer in time."""


class DamagedObject(StoreError):
    """An object beside the artifacts (a claim, a ref, a record ...) is not what was written; `where` is its address."""


class CorruptArtifact(StoreError):
    """Bytes differ from their manifest; carries the artifact's `kind`, `key` and `attempt` so that it can be re-made.

    `attempt` is empty where the manifest itself cannot be read.
    """

    def __init__(self, what: str, *, kind: str, key: str, attempt: str = "", hint: str | None = None) -> None:
        self.kind, self.key, self.attempt = kind, key, attempt
        super().__init__(what, where=f"artifacts/{kind}/{key}", hint=hint)


class InputChanged(StoreError):
    """An input holds other content than the stage was started for, or is gone: it was made again or collected since.

    Nothing is wrong with what stands there, so it is not quarantined; the stage is resolved again with it.
    """


class WrongReference(StoreError):
    """A name or a record points to content that the artifact does not have. Only the reference is in doubt."""


class GateRefused(ForgelineError):
    """The gate's requirements were not met; the refusal itself is a recorded artifact."""

    exit_code = 4


class Preempted(ForgelineError):
    """The job was asked to stop and committed its state; running again resumes it."""

    exit_code = 75

"""`forgeline promote|rollback`: what a name such as `reviews/production` points to, decided by a person."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from flows.commands.parsing import Commands, open_store
from infra.errors import GateRefused, UsageError

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef
    from infra.store import Store


def add(commands: Commands) -> None:
    sub = commands.add("promote", promote, "point a ref to another ref's model that a gate let through", store=True)
    sub.add_argument("ref", help="ref to move, e.g. reviews/production")
    sub.add_argument("source", help="ref of the model, e.g. reviews/int8/latest")
    sub.add_argument("--verdict", metavar="REF", help="ref of the verdict on that very model, e.g. reviews/gate/latest")
    sub.add_argument("--force", action="store_true", help="without a verdict, or against one")
    sub.add_argument("--reason", default="", help="kept in the ref's history; required with --force")
    sub = commands.add("rollback", rollback, "point a ref back to what it pointed to before", store=True)
    sub.add_argument("ref", help="ref to move, e.g. reviews/production")
    sub.add_argument("--to", type=int, metavar="N", help="entry of its history (default: the last other artifact)")
    sub.add_argument("--reason", default="", help="kept in the ref's history")


def promote(arguments: argparse.Namespace) -> int:
    from tasks.plan import read_ref
    from tasks.release.promotion import put_in_place

    store = open_store(arguments)
    model = read_ref(store, arguments.source)
    if arguments.force:
        if not arguments.reason:
            raise UsageError("--force needs a reason", hint="Say it: --reason 'the gate measured on a busy machine'.")
        print(put_in_place(store, arguments.ref, model, f"forced: {arguments.reason}"))
        return 0
    if not arguments.verdict:
        raise UsageError(
            "which gate let it through?",
            hint="Name its verdict: --verdict PIPELINE/GATE/latest. Without one: --force --reason TEXT.",
        )
    _require_passed(store, read_ref(store, arguments.verdict), model)
    note = f"by hand, on {arguments.verdict}" + (f": {arguments.reason}" if arguments.reason else "")
    print(put_in_place(store, arguments.ref, model, note))
    return 0


def _require_passed(store: Store, named: ArtifactRef, model: ArtifactRef) -> None:
    manifest = store.manifest(named.kind, named.key)
    if manifest is None or manifest.type != "verdict":
        raise UsageError(f"{named.kind} {named.key[:12]} is no verdict", hint="Name the ref of a gate.")
    verdict = json.loads((store.fetch(manifest) / "verdict.json").read_text(encoding="utf-8"))
    if verdict["candidate"]["digest"] != model.digest:
        told = f"{verdict['candidate']['name']!r} ({verdict['candidate']['digest'][:12]})"
        raise UsageError(f"the verdict is on {told}, not on this model ({model.digest[:12]})")
    if not verdict["passed"]:
        failed = " ".join(one["sentence"] for one in verdict["requirements"] if not one["passed"])
        raise GateRefused("the gate refused this model", hint=failed)


def rollback(arguments: argparse.Namespace) -> int:
    from tasks.release.promotion import roll_back

    for move in roll_back(open_store(arguments), arguments.ref, arguments.to, arguments.reason):
        print(move)
    return 0

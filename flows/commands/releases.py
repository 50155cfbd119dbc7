"""`forgeline promote|rollback`: what a name such as `reviews/production` points to, decided by a person."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from flows.commands.parsing import Commands, say, store_of
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.artifacts import ArtifactRef
    from infra.store import Store
    from tasks.release.promotion.refs import Move


def add(commands: Commands) -> None:
    sub = commands.add("promote", promote, "point a ref to a model that a gate let through", store=True)
    sub.add_argument("ref", help="ref to move, e.g. reviews/production")
    sub.add_argument("model", help="a ref, e.g. reviews/int8/latest, or KIND/KEY (or how the key begins)")
    sub.add_argument("--verdict", metavar="REF", help="ref of a verdict on that very model (default: it is looked for)")
    sub.add_argument("--force", action="store_true", help="without a verdict, or against one")
    sub.add_argument("--reason", default="", help="kept in the ref's history; required with --force")
    sub = commands.add("rollback", rollback, "point a ref back to what it pointed to before", store=True)
    sub.add_argument("ref", help="ref to move, e.g. reviews/production")
    sub.add_argument("--to", type=int, metavar="N", help="entry of its history (default: the last other artifact)")
    sub.add_argument("--reason", default="", help="kept in the ref's history")


def promote(arguments: argparse.Namespace) -> int:
    from tasks.pipeline.references import moved_by_runs
    from tasks.release.promotion.refs import put_in_place
    from tasks.release.promotion.verdicts import newest_verdict, require_passed, verdict_at

    if moved_by_runs(arguments.ref):
        hint = "Name another, such as NAME/production."
        raise UsageError(f"{arguments.ref} is what a stage made last, which every run moves", hint=hint)
    store, reason = store_of(arguments), arguments.reason
    model = _model(store, arguments.model)
    if arguments.force:
        if not reason.strip():
            raise UsageError("--force needs a reason", hint="Say it: --reason 'the gate measured on a busy machine'.")
        note = f"forced: {reason}"
    else:
        found = verdict_at(store, arguments.verdict) if arguments.verdict else newest_verdict(store, model)
        require_passed(found, model)
        note = f"by hand, on {found.name}" + (f": {reason}" if reason else "")
    return _report(store, arguments.ref, put_in_place(store, arguments.ref, model, note))


def _model(store: Store, text: str) -> ArtifactRef:
    from infra.lineage import find

    id, _ = find(store, text)
    manifest = store.manifest(*id)
    if manifest is None or manifest.type not in ("model", "onnx"):
        kind = f"a {manifest.type}" if manifest else "no longer in the store"
        raise UsageError(f"{text} is {kind}", hint="Promote a model: a ref, or KIND/KEY as `forgeline show` prints it.")
    return manifest.ref


def rollback(arguments: argparse.Namespace) -> int:
    from tasks.release.promotion.refs import roll_back

    store = store_of(arguments)
    return _report(store, arguments.ref, roll_back(store, arguments.ref, arguments.to, arguments.reason))


def _report(store: Store, ref: str, moves: list[Move]) -> int:
    from infra import refs
    from tasks.release.promotion.refs import weights_ref

    for move in moves:
        print(move)
    behind = weights_ref(ref)
    if behind not in {move.ref for move in moves} and refs.newest_number(store, behind):
        say(f"{behind} stays where it is: no release of this model says which weights are behind it")
    return 0

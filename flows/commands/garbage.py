"""`forgeline gc`: remove what nothing needs any more."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flows.commands.parsing import Commands, store_of
from flows.commands.verification import FAILED, progress, summary
from infra.errors import UsageError
from infra.local_garbage import KEEP_DAYS

if TYPE_CHECKING:
    from infra.garbage import Item, Plan
    from infra.store import Store
    from infra.verification import Verified

DAY = 86400.0


def add(commands: Commands) -> None:
    text = (
        "say what no ref, run or lineage needs, and what old runs left on this machine; with --delete, move the first "
        "to the trash, and later remove it, and remove the second"
    )
    sub = commands.add("gc", gc, text, store=True)
    sub.add_argument("--delete", action="store_true", help="do it; without this, nothing changes")
    sub.add_argument(
        "--grace", type=_days, default=7.0, metavar="DAYS",
        help="age at which something may go to the trash, and time in the trash before it is removed (default: 7)",
    )  # fmt: skip
    sub.add_argument(
        "--keep-runs", type=_number, default=20, metavar="N", help="keep what the last N runs have (default: 20)"
    )
    sub.add_argument(
        "--keep-history", type=_number, default=5, metavar="N", help="keep the last N values of a ref (default: 5)"
    )
    sub.add_argument(
        "--verify", action="store_true", dest="verify_kept",
        help="read every byte of what is kept; where something of it is damaged, nothing is removed",
    )  # fmt: skip
    sub.add_argument(
        "--local", type=_days, default=KEEP_DAYS, metavar="DAYS",
        help="age at which folders of runs in $FORGELINE_HOME and ended flow runs in Prefect's SQLite database go; "
        f"scratch of killed processes goes after a day (default: {KEEP_DAYS:.0f})",
    )  # fmt: skip
    sub.add_argument("--restore", metavar="KIND/KEY", help="put an artifact back out of the trash, and do nothing else")
    sub.add_argument("--json", action="store_true", help="every object and why, as JSON on stdout")


def gc(arguments: argparse.Namespace) -> int:
    from flows.garbage_here import garbage_here
    from infra.census import Keep
    from infra.collector import collect, look, restore
    from infra.verification import to_json

    store = store_of(arguments)
    if arguments.restore:
        kind, slash, key = arguments.restore.partition("/")
        if not (kind and slash and key):
            raise UsageError(f"{arguments.restore!r} is not KIND/KEY", hint="For example pretrain/3fa9c2.")
        back = restore(store, kind, key)
        print(f"back: {back.kind} {back.key}; it stays for the grace, and as long as a ref or a kept run names it")
        return 0
    keep = Keep(arguments.grace * DAY, arguments.keep_runs, arguments.keep_history)
    verified = _verified(store, look(store, keep)) if arguments.verify_kept else None
    delete = arguments.delete and not (verified and verified.damaged)
    plan = (collect if delete else look)(store, keep)
    here = garbage_here(arguments.local * DAY, delete=delete)
    if arguments.json:
        kept = {"verified": to_json(verified)} if verified else {}
        local = [{"path": str(one.path), "what": one.what, "bytes": one.bytes} for one in here.folders]
        whole = {**_json(plan, done=delete), **kept, "here": local, "flow_runs": here.flow_runs}
        print(json.dumps(whole, indent=2))
    else:
        print("\n".join([*here.lines(), _plan_summary(plan, done=delete, here=bool(here.lines()))]))
        if verified:
            print(summary(verified, store))
        if delete != arguments.delete:
            print("nothing was removed, because something of what is kept is damaged: mend that first")
    return FAILED if verified and verified.damaged else 0


def _verified(store: Store, plan: Plan) -> Verified:
    """What is kept, read and compared with what was written."""
    from infra.verification import verify_artifacts

    return verify_artifacts(store, plan.kept, progress)


def _json(plan: Plan, *, done: bool) -> dict[str, Any]:
    return {
        "done": done,
        "items": [asdict(item) for item in plan.items()],
        "put_back": plan.put_back,
        "kept": [{"kind": kind, "key": key, "why": why} for (kind, key), why in plan.kept.items()],
        "waits": plan.waits or None,
        "stays": plan.stays or None,
        "notes": plan.notes,
    }


def _plan_summary(plan: Plan, *, done: bool, here: bool) -> str:
    steps = [("to the trash", plan.to_trash), ("out of the trash", plan.from_trash), ("removed", plan.files)]
    lines = []
    for step, items in steps:
        for (what, kind, why), of in _groups(items).items():
            size = sum(item.bytes for item in of) / 1e6
            lines.append(f"{step:16}  {len(of):6} {what:11}  {kind:12} {size:12.2f} MB  {why}")
    lines += [f"{'put back':16}  {path}" for path in plan.put_back]
    lines += [f"damaged: {note}" for note in plan.notes]
    if plan.stays:
        lines.append(f"all artifacts stay: {plan.stays}")
    if plan.waits:
        lines.append(f"parts and shared files wait: {plan.waits}")
    lines.append(f"kept: {len(plan.kept)} artifacts that a ref, a run or a lineage needs")
    if not done and (plan.items() or here):
        lines.append("nothing was changed: `--delete` does it")
    return "\n".join(lines)


def _groups(items: list[Item]) -> dict[tuple[str, str, str], list[Item]]:
    found: dict[tuple[str, str, str], list[Item]] = defaultdict(list)
    for item in items:
        found[item.what, item.kind, item.why].append(item)
    return dict(sorted(found.items()))


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of days: use 0 or more")
    return days


def _number(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number: use 0 or more")
    return int(text)

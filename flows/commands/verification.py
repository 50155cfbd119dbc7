"""`forgeline verify`: does the store hold what it says it holds?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from flows.commands.parsing import Commands, say, store_of
from infra.errors import StoreError, UsageError

if TYPE_CHECKING:
    from infra.store import Store
    from infra.verification import Verified

FAILED = 3


def add(commands: Commands) -> None:
    text = "read every byte of a ref's artifact, or of the whole store, and compare it with what was written"
    sub = commands.add("verify", verify, text, store=True)
    sub.add_argument("ref", nargs="?", help="a ref, e.g. reviews/production, or KIND/KEY (or how the key begins)")
    sub.add_argument("--all", action="store_true", dest="whole", help="everything in the store")
    sub.add_argument(
        "--set-aside", action="store_true", help="set damaged artifacts aside, so that the next run makes them again"
    )
    sub.add_argument("--json", action="store_true", help="what was read and what is damaged, as JSON on stdout")


def verify(arguments: argparse.Namespace) -> int:
    from infra.verification import note, to_json, verify_store

    if bool(arguments.ref) == arguments.whole:
        raise UsageError("name a ref, or --all", hint="One of them; see --help.")
    store = store_of(arguments)
    if arguments.whole:
        found = verify_store(store, progress)
        _noted(store, lambda: note(store, found))
    else:
        found = _one(store, arguments.ref)
    moved = _set_aside(store, found) if arguments.set_aside else {}
    if arguments.json:
        print(json.dumps({"store": store.url, **to_json(found), "set_aside": moved}, indent=2))
    else:
        print(summary(found, store))
        for path, place in moved.items():
            print(f"{path}: {place}")
    return FAILED if found.damaged else 0


def progress(done: int, total: int) -> None:
    """How far it is, on a terminal."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{done} of {total} artifacts", end=end, file=sys.stderr, flush=True)


def summary(found: Verified, store: Store) -> str:
    """What was read, and what is damaged, for people."""
    lines = []
    for damage in found.damaged:
        lines += [f"damaged  {damage.path}: {damage.what}", f"         -> {damage.mend}"]
    counts = {"artifacts": found.artifacts, "checkpoints": found.checkpoints, "refs": found.refs}
    read = ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "nothing"
    state = f"{len(found.damaged)} damaged" if found.damaged else "all in order"
    return "\n".join([*lines, f"{store.url}: {read}, {found.bytes / 1e6:,.1f} MB read: {state}"])


def _one(store: Store, text: str) -> Verified:
    from infra import refs
    from infra.lineage import find
    from infra.verification import Verified, verify_artifacts, verify_ref

    if refs.is_name(text) and refs.newest_number(store, text):
        found = Verified()
        verify_ref(store, text, found)
        if (newest := refs.past(store, text, 1).newest) is None:
            return found
        of_artifact = verify_artifacts(store, [(newest.kind, newest.key)])
        of_artifact.refs, of_artifact.damaged = found.refs, [*found.damaged, *of_artifact.damaged]
        return of_artifact
    id, _ = find(store, text)
    return verify_artifacts(store, [id])


def _set_aside(store: Store, found: Verified) -> dict[str, str]:
    """What became of each damaged artifact, in words."""
    from infra.manifest_file import manifest_path
    from infra.verification import set_aside

    said = {}
    for damage in found.damaged:
        if damage.artifact:
            place = set_aside(store, damage)
            kind, key, _ = damage.artifact
            again = ", and written again from its copy" if store.exists(manifest_path(kind, key)) else ""
            said[damage.path] = f"set aside in {place}{again}" if place else "read again, it is in order, or gone"
    return said


def _noted(store: Store, write: Callable[[], None]) -> None:
    """A store that may only be read can be verified too."""
    try:
        write()
    except StoreError as error:
        say(f"that it was verified could not be noted in {store.url}: {error.what}")

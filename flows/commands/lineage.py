"""`forgeline lineage`: what an artifact was made from, and what a data file went into."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from flows.commands.parsing import Commands, say, store_of
from infra.errors import UsageError

if TYPE_CHECKING:
    from infra.store import Store
    from tasks.release.lineage.view import Lineage


def add(commands: Commands) -> None:
    text = "walk from a ref up to every data file and second, or from a data file down to every model"
    sub = commands.add("lineage", lineage, text, store=True)
    sub.add_argument("ref", nargs="?", help="ref name, e.g. stdlib-code/production, or KIND/KEY (its first digits)")
    sub.add_argument(
        "--impacted-by", metavar="PATH|DIGEST",
        help="walk down instead: what used this source file, these bytes, or this artifact",
    )  # fmt: skip
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything, as JSON on stdout")
    form.add_argument("--mermaid", action="store_true", help="a mermaid flowchart on stdout")
    form.add_argument("--html", type=Path, metavar="FILE", help="write one page with the graph and its tables")
    form.add_argument("--openlineage", action="store_true", help="OpenLineage events, one JSON line an artifact")


def lineage(arguments: argparse.Namespace) -> int:
    from tasks.release.lineage import view

    if bool(arguments.ref) == bool(arguments.impacted_by):
        raise UsageError("name a ref, or --impacted-by a file or digest", hint="One of them; see --help.")
    store = store_of(arguments)
    shown = _down(store, arguments.impacted_by) if arguments.impacted_by else _up(store, arguments.ref)
    if arguments.json:
        print(json.dumps(view.to_json(shown), indent=2))
    elif arguments.mermaid:
        print(view.to_mermaid(shown))
    elif arguments.openlineage:
        from tasks.release.lineage.openlineage import events

        for event in events(shown.graph, store):
            print(json.dumps(event))
    elif arguments.html:
        from tasks.release.lineage.page import render_lineage

        arguments.html.parent.mkdir(parents=True, exist_ok=True)
        arguments.html.write_text(render_lineage(shown), encoding="utf-8")
        say(f"written: {arguments.html}")
    else:
        print(view.to_text(shown))
    return 0


def _up(store: Store, text: str) -> Lineage:
    from infra.lineage import ancestors, changes, find, previous
    from tasks.release.lineage.view import Lineage

    start, ref = find(store, text)
    graph, before = ancestors(store, start), previous(store, ref, start)
    changed = changes(graph, start, ancestors(store, before), before) if before else {}
    return Lineage(text, [start], graph, changed, before)


def _down(store: Store, asked: str) -> Lineage:
    from infra.impact import impact
    from tasks.release.lineage.view import Lineage

    found = impact(store, asked)
    return Lineage(asked, list(found.starts), found.graph, refs=found.refs, why=found.starts, down=True)

"""`forgeline lineage --html`: a lineage as one page that needs nothing else, with the graph as a picture."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Template

from infra.lineage import Node
from tasks.release import readable
from tasks.release.drawing.dag_picture import dag
from tasks.release.drawing.template import template
from tasks.release.lineage.view import Lineage, change_text, facts, name_of


def render_lineage(shown: Lineage) -> str:
    """The page. Names, paths and params are other people's text: jinja2 and markupsafe escape them."""
    nodes = list(shown.graph.nodes.values())
    names = {node.id: _box_name(node, nodes) for node in nodes}
    return _template().render(
        title=shown.title,
        before=shown.before,
        down=shown.down,
        dag=dag(_boxes(shown, names)),
        artifacts=[_row(node, names[node.id], shown) for node in nodes],
        datasets=[(names[node.id], node.sources) for node in nodes if node.sources],
        refs=shown.refs,
    )


@cache
def _template() -> Template:
    return template(Path(__file__).with_name("lineage.html.j2"), moment=readable.moment)


def _box_name(node: Node, nodes: list[Node]) -> str:
    """What its box is called: boxes are distinguished by their names."""
    same = [other for other in nodes if name_of(other) == name_of(node)]
    return name_of(node) if len(same) == 1 else f"{name_of(node)} {node.id[1][:6]}"


def _boxes(shown: Lineage, names: dict[Any, str]) -> list[dict[str, Any]]:
    boxes: list[dict[str, Any]] = []
    for node in shown.graph.nodes.values():
        needs = [names[above.id] for above in shown.graph.above(node)]
        if node.sources:
            count = f"{len(node.sources)} source file{'s' if len(node.sources) > 1 else ''}"
            paths = ", ".join(file.path for file in node.sources[:20])
            source = f"{count} of {names[node.id]}"
            boxes.append({"name": source, "kind": count, "action": "data", "reason": paths, "needs": []})
            needs.append(source)
        boxes.append(
            {
                "name": names[node.id],
                "kind": node.id[0],
                "action": "run" if node.manifest else "missing",
                "seconds": facts(node).get("seconds"),
                "reason": node.problem or f"key {node.id[1][:16]}",
                "needs": needs,
            }
        )
    return boxes


def _row(node: Node, name: str, shown: Lineage) -> dict[str, Any]:
    known = facts(node)
    return {
        "name": name,
        "kind": node.id[0],
        "key": node.id[1],
        "digest": node.manifest.digest if node.manifest else "",
        "size": readable.bytes_size(node.manifest.size) if node.manifest else "",
        "seconds": readable.seconds(known.get("seconds")),
        "run": known.get("run", ""),
        "commit": str(known.get("commit", ""))[:12],
        "machine": f"{known['host']}, {known.get('cpus', '?')} CPUs" if "host" in known else "",
        "versions": ", ".join(f"{package} {version}" for package, version in (known.get("versions") or {}).items()),
        "problem": node.problem,
        "why": shown.why.get(node.id, ""),
        "changes": [change_text(change) for change in shown.changes.get(node.id, ())],
    }

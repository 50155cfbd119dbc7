"""What the `deploy` section names must be in the pipeline: watched stages, and fields that a form sets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from infra.config_check import did_you_mean
from infra.errors import Problem
from infra.yaml_source import Document, dotted
from tasks.pipeline.deploy import Deploy
from tasks.pipeline.parameter_form import setting

if TYPE_CHECKING:
    from tasks.pipeline.node import StageNode


def check_deployment(deploy: Deploy, nodes: dict[str, StageNode], document: Document, problems: list[Problem]) -> None:
    """Adds what `deploy` names and the pipeline does not have to `problems`."""
    for i, name in enumerate(deploy.watch.stages if deploy.watch else []):
        if name not in nodes or not reads_files(nodes[name]):
            place = ("deploy", "watch", "stages", i)
            known = did_you_mean(name, [n for n, node in nodes.items() if reads_files(node)])
            what = f"no stage {name!r} that reads files; {known}"
            problems.append(Problem(document.place(place), dotted(place), what))
    for name, target in deploy.parameters.items():
        path = ("deploy", "parameters", name)
        try:
            setting(target, nodes)
        except LookupError as error:
            problems.append(Problem(document.place(path), dotted(path), str(error.args[0])))


def watched(deploy: Deploy, nodes: dict[str, StageNode]) -> list[StageNode]:
    """The stages whose sources are watched, in the pipeline's order."""
    asked = deploy.watch.stages if deploy.watch else []
    return [node for name, node in nodes.items() if reads_files(node) and (name in asked or not asked)]


def reads_files(node: StageNode) -> bool:
    """Whether a stage makes a dataset of files outside the store."""
    return node.stage.makes == "dataset" and node.stage.sources is not None

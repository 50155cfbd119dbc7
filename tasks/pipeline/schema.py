"""The JSON Schema of pipeline files, for editors."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict, Field, create_model

from infra.execution import Execution
from tasks.pipeline.dag import PipelineFile
from tasks.pipeline.node import AFTER
from tasks.pipeline.search import SEARCH
from tasks.pipeline.search_space import Search
from tasks.stage import stages


def schema() -> dict[str, Any]:
    """JSON Schema of a pipeline file, for editors (`yaml-language-server: $schema=...`) and `forgeline schema`."""
    bodies: dict[str, Any] = {kind: stage.params for kind, stage in stages().items()} | {SEARCH: Search}
    after: Any = (str | list[str], Field(default=[], description="Gates that must pass before this stage runs."))
    kinds = [
        create_model(f"{kind.title()}Stage", __config__=ConfigDict(extra="forbid"), **{kind: (body, ...), AFTER: after})
        for kind, body in bodies.items()
    ]
    union: Any = kinds[0]
    for model in kinds[1:]:
        union = union | model
    full = create_model(
        "Pipeline",
        __base__=PipelineFile,
        stages=(dict[str, union], Field(description="Stage name -> {kind: params}.")),
        execution=(dict[str, Execution], Field(default={}, description="`default` and stage names -> settings.")),
    )
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **full.model_json_schema()}

"""The parameters a person may set when a deployed pipeline is started: their types, bounds, help and present values.

Each is a field of a stage, so the form has what the field's own model says of it. What is not declared by a model (a
config field of `model: {...}`) takes the type of its present value.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from infra.config_check import did_you_mean
from infra.errors import UsageError

if TYPE_CHECKING:
    from tasks.pipeline.dag import Pipeline
    from tasks.pipeline.node import StageNode


@dataclass(frozen=True)
class Setting:
    """A field of a stage's params: what its model says of it, and its value in the pipeline file."""

    info: FieldInfo
    value: Any


def setting(target: str, nodes: Mapping[str, StageNode]) -> Setting:
    """The field `stages.STAGE.FIELD...`, the kind left out or not. Raises LookupError with what is wrong with it."""
    parts = target.split(".")
    if parts[0] != "stages" or len(parts) < 3:
        raise LookupError("expected stages.STAGE.FIELD, a field of a stage of this file")
    if parts[1] not in nodes:
        raise LookupError(f"no stage named {parts[1]!r}; {did_you_mean(parts[1], nodes)}")
    node = nodes[parts[1]]
    below = parts[3:] if parts[2] == node.stage.kind and len(parts) > 3 else parts[2:]
    found = Setting(Field(), node.params)
    for part in below:
        found = _below(found.value, part)
    return found


def form(pipeline: Pipeline) -> type[BaseModel]:
    """A model whose fields are the declared parameters, each with the pipeline file's value as its default."""
    fields: dict[str, Any] = {}
    for name, target in pipeline.deploy.parameters.items():
        found = setting(target, pipeline.stages)
        info = copy.copy(found.info)
        info.default, info.default_factory = found.value, None
        info.description = f"{info.description or ''} (`{target}`)".strip()
        fields[name] = (info.annotation or type(found.value), info)
    return create_model("Settings", __config__=ConfigDict(extra="forbid"), **fields)


def overrides(pipeline: Pipeline, settings: Mapping[str, Any]) -> list[str]:
    """`--set` of each setting that is not what the file says anyway. Raises UsageError on one that is wrong."""
    model = form(pipeline)
    try:
        given = model.model_validate(dict(settings))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, f['loc']))}: {f['msg']}" for f in error.errors(include_url=False))
        known = ", ".join(pipeline.deploy.parameters) or "none"
        raise UsageError(f"settings: {faults}", hint=f"Parameters of this pipeline: {known}.") from error
    changed = {name: value for name, value in given.model_dump(mode="json").items() if name in settings}
    default = model().model_dump(mode="json")
    targets = pipeline.deploy.parameters
    return [
        f"{targets[name]}={json.dumps(value, ensure_ascii=False)}"
        for name, value in changed.items()
        if value != default[name]
    ]


def _below(value: Any, part: str) -> Setting:
    if isinstance(value, BaseModel) and part in type(value).model_fields:
        return Setting(type(value).model_fields[part], getattr(value, part))
    known = (value.model_extra or {}) if isinstance(value, BaseModel) else value if isinstance(value, dict) else {}
    if part not in known:
        names = [*type(value).model_fields, *known] if isinstance(value, BaseModel) else known
        raise LookupError(f"no field {part!r}; {did_you_mean(part, names)}".rstrip("; "))
    return Setting(FieldInfo(annotation=type(known[part])), known[part])

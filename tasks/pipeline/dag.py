"""A pipeline: the file as it is written, and the checked DAG that is made of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from infra.budget import Budget
from infra.errors import CREDENTIALS
from infra.open_store import unfilled
from infra.tracking import TrackingSettings
from tasks.pipeline.deploy import Deploy
from tasks.pipeline.node import StageNode
from tasks.pipeline.search import Writing

NAME = re.compile(r"^[a-z0-9][a-z0-9_-]{0,99}$")
"""Names of pipelines and stages: they are parts of refs, and folders."""
DEFAULT_STORE = ".forgeline/store"


def default_store() -> str:
    """The store of whoever names none: $FORGELINE_STORE, else a folder."""
    return os.environ.get("FORGELINE_STORE") or DEFAULT_STORE


def default_store_is() -> str:
    """Where `default_store` comes from, in words."""
    return "as $FORGELINE_STORE says" if os.environ.get("FORGELINE_STORE") else f"the default in {Path.cwd()}"


class PipelineFile(BaseModel):
    """The top level of a pipeline file."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=NAME.pattern, description="Name of the pipeline; its refs live under it.")
    description: str = Field("", description="One sentence on what it makes.")
    store: str = Field(
        default_factory=default_store,
        validate_default=True,
        min_length=1,
        description=f"A folder, or s3://bucket/prefix. Not given: $FORGELINE_STORE, else {DEFAULT_STORE}.",
    )
    tracking: TrackingSettings = Field(
        default_factory=TrackingSettings, description="Weights & Biases; offline by default."
    )
    budget: Budget = Field(default_factory=Budget, description="What a run may cost, and prices; no limit by default.")
    stages: dict[str, Any] = Field(min_length=1, description="Stage name -> {kind: params}.")
    execution: dict[str, Any] = Field(
        default_factory=dict, description="`default` and stage names -> execution settings."
    )
    deploy: Deploy = Field(default_factory=Deploy, description="When it runs by itself, and what it watches.")

    @field_validator("store")
    @classmethod
    def _no_credentials(cls, value: str) -> str:
        if CREDENTIALS.search(value):
            raise ValueError("no credentials in a file: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY instead")
        if wrong := unfilled(value):
            raise ValueError(wrong)
        return value


@dataclass(frozen=True)
class Pipeline:
    """A checked pipeline; `stages` are in an order in which each comes after what it needs."""

    name: str
    description: str
    store: str
    """Named by the command, else by the file, else by the environment (`default_store`)."""
    tracking: TrackingSettings
    stages: dict[str, StageNode]
    text: str
    path: Path
    budget: Budget = field(default_factory=Budget)
    overrides: tuple[str, ...] = field(default=())
    searches: tuple[Writing, ...] = field(default=())
    deploy: Deploy = field(default_factory=Deploy)
    names_store: bool = True
    """Whether the command or the file did."""

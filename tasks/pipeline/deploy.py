"""The `deploy` section of a pipeline file: when it runs by itself, what it watches, what a person may set in the UI.

    deploy:
      schedules: [{cron: "0 3 * * *", timezone: Europe/Berlin}]
      overlap: skip
      parameters: {epochs: stages.teacher.epochs}       # a field of the form in the UI -> what it sets in this file
      watch: {every: 15m, quiet: 5m, min_new_rows: 200, max_age: 30d, drift: true}

Nothing here is part of a result's identity. What Prefect gets of it: `flows/registration.py`; when a schedule fires,
which only Prefect knows: `flows/schedules.py`.
"""

from __future__ import annotations

import re
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from infra.durations import Duration
from infra.execution import Settings

NAME = r"^[a-z][a-z0-9_]*$"


class Schedule(Settings):
    """When a pipeline runs by itself: give one of `cron`, `interval` and `rrule`."""

    cron: str | None = Field(
        None, description="Minute, hour, day, month, weekday: `0 3 * * *` is every night at three. Five fields."
    )
    interval: Duration | None = Field(None, gt=0, description="Time from one start to the next: `6h`.")
    rrule: str | None = Field(
        None, description="Recurrence rule (RFC 5545): `FREQ=MONTHLY;BYDAY=1MO`. Its dates go by `timezone`."
    )
    timezone: str = Field(
        "UTC", description="Whose clock it follows, e.g. Europe/Berlin; an `interval` of days keeps its hour."
    )

    @model_validator(mode="after")
    def _one_rule(self) -> Schedule:
        given = [name for name in ("cron", "interval", "rrule") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of `cron`, `interval` and `rrule`")
        return self

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError) as error:
            raise ValueError(f"no time zone is called {value!r}; write one such as Europe/Berlin") from error
        return value


class Watch(Settings):
    """What starts a run besides a schedule: new data that have come to rest and are worth it."""

    stages: list[str] = Field(
        default_factory=list, description="Dataset stages whose sources are watched. None named: all that read files."
    )
    every: Duration = Field(900.0, ge=10, description="Time between two looks.")
    quiet: Duration = Field(60.0, description="How long the sources must stand still before they are read.")
    min_new_rows: int = Field(1, ge=1, description="Examples that were not there at the last run, for a run.")
    max_age: Duration | None = Field(
        None, gt=0, description="Age of the last run from which on any new example is enough. None: no age is."
    )
    drift: bool = Field(False, description="Fewer new examples are enough where they differ from those trained on.")


class Deploy(Settings):
    """How a pipeline is registered with Prefect."""

    schedules: list[Schedule] = Field(default_factory=list, description="When it runs by itself. None: never.")
    pool: str = Field("forgeline", min_length=1, description="Work pool; `forgeline up` starts a worker of that one.")
    tags: list[str] = Field(default_factory=list, description="Tags of its runs.")
    overlap: Literal["queue", "skip"] = Field(
        "queue",
        description="What becomes of a run that is due while another one goes on: it waits, or is left out. "
        "New data are not left out: their run begins with the next look.",
    )
    parameters: dict[str, str] = Field(
        default_factory=dict, description="Fields of the form in the UI: name -> what it sets, as with `--set`."
    )
    watch: Watch | None = Field(None, description="New data that start a run. None: nothing is watched.")

    @field_validator("parameters")
    @classmethod
    def _names(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(NAME, name):
                raise ValueError(f"{name!r} cannot be a parameter: lower-case letters, digits and _, a letter first")
        return value

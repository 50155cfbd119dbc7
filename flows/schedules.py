"""When a schedule fires, asked of the code that fires it: the objects of Prefect's server, not another reading of them.

    cron        five fields or @daily and the like. A sixth one is refused: Prefect reads it as seconds, at the end,
                so that Quartz's `0 0 3 * * *` would fire sixty times in one minute of every third of a month.
    rrule       Prefect reads every date in it by the schedule's `timezone`, whatever TZID or Z it bears: refused
                unless they say the same. Without a DTSTART the rule begins in 2020, so COUNT is used up.
    interval    counted from the year 2000

Measured: a cron time in the hour that spring leaves out fires an hour earlier, one in autumn's double hour once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flows.registration import schedule_body
from infra.errors import ConfigError, Problem
from infra.yaml_source import dotted, parse_yaml
from tasks.pipeline.deploy import Schedule

if TYPE_CHECKING:
    from tasks.pipeline.dag import Pipeline

SHOWN = 3
PATIENCE = 20.0
"""Seconds for what takes milliseconds: a rule that Prefect cannot find a date of would keep its scheduler busy."""
ZONED = re.compile(r"TZID=([^:;\s]+)", re.IGNORECASE)
IN_UTC = re.compile(r"\d{8}T\d{6}Z", re.IGNORECASE)


@dataclass(frozen=True)
class Upcoming:
    """A schedule of a pipeline and when it fires next."""

    rule: str
    dates: tuple[datetime, ...]

    def __str__(self) -> str:
        dates = ", ".join(f"{date:%a %Y-%m-%d %H:%M:%S %z}" for date in self.dates)
        return f"    {self.rule}: next {dates}"


def upcoming(pipeline: Pipeline, after: datetime | None = None) -> list[Upcoming]:
    """When each schedule of a pipeline fires next. Raises ConfigError, with every one that is wrong or fires never."""
    document = parse_yaml(pipeline.text, str(pipeline.path))
    found, problems = list[Upcoming](), list[Problem]()
    for path, schedule in _schedules(pipeline):
        try:
            found.append(Upcoming(_rule(schedule), next_dates(schedule, after)))
        except ValueError as error:
            problems.append(Problem(document.place(path), dotted(path), str(error)))
    if problems:
        raise ConfigError(problems)
    return found


def next_dates(schedule: Schedule, after: datetime | None = None, count: int = SHOWN) -> tuple[datetime, ...]:
    """The next dates (now, or `after`) that Prefect's server would make runs for; fewer where the schedule ends.

    Raises ValueError on a schedule that it refuses, that never fires, or that it reads otherwise than it is written.
    """
    _as_written(schedule)
    asked = _as_registered(schedule)
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(tuple(asked._get_dates_generator(n=count, start=after)))
        except Exception as error:  # croniter and dateutil raise whatever their arithmetic does
            found.append(error)

    # A daemon: a rule that no date fits may be looked through for hours.
    thread = threading.Thread(target=ask, name="schedule", daemon=True)
    thread.start()
    thread.join(PATIENCE)
    if not found:
        raise ValueError(f"Prefect finds no date for it within {PATIENCE:.0f} s; write a rule that fires more often")
    if isinstance(found[0], Exception):
        raise ValueError(f"it never fires: {_line(found[0])}")
    if not found[0]:
        raise ValueError("it never fires again" + _why_never(schedule))
    return tuple(found[0])


def _as_registered(schedule: Schedule) -> Any:
    """The schedule as the server keeps it, once the API has sent it."""
    from prefect.server.schemas.actions import DeploymentScheduleCreate
    from prefect.server.schemas.schedules import CronSchedule, IntervalSchedule, RRuleSchedule

    kind = CronSchedule if schedule.cron is not None else RRuleSchedule if schedule.rrule is not None else None
    try:
        made = (kind or IntervalSchedule).model_validate(schedule_body(schedule)["schedule"])
        return DeploymentScheduleCreate(schedule=made).schedule
    except ValidationError as error:
        raise ValueError(f"Prefect refuses it: {_line(error.errors()[0]['msg'])}") from error
    except (TypeError, AttributeError, KeyError, IndexError, OverflowError) as error:
        raise ValueError(f"Prefect cannot read it: {_line(error)}") from error


def _as_written(schedule: Schedule) -> None:
    """Raises ValueError where Prefect would take a schedule, and fire at other times than it says."""
    if schedule.cron is not None and len(schedule.cron.split()) not in (1, 5):
        said = f"{len(schedule.cron.split())} fields; write five: minute, hour, day, month, weekday"
        raise ValueError(f"{said}. Prefect reads a sixth as seconds; for less than a minute use `interval: 30s`")
    if schedule.rrule is None:
        return
    for zone in ZONED.findall(schedule.rrule):
        if zone != schedule.timezone:
            raise ValueError(
                f"TZID={zone} would be ignored: Prefect goes by `timezone: {schedule.timezone}`. "
                f"Write `timezone: {zone}` and leave TZID out"
            )
    if schedule.timezone != "UTC" and (date := IN_UTC.search(schedule.rrule)):
        raise ValueError(
            f"{date[0]} is UTC, but Prefect reads it by the clock of {schedule.timezone}: write it so, without Z"
        )


def _why_never(schedule: Schedule) -> str:
    rule = (schedule.rrule or "").upper()
    if "COUNT=" in rule and "DTSTART" not in rule:
        return ": without a DTSTART Prefect counts from 2020-01-01; begin with `DTSTART:20270101T030000` and a new line"
    return ": its last date is over" if "UNTIL=" in rule or "COUNT=" in rule else ": no date fits it"


def _schedules(pipeline: Pipeline) -> Iterator[tuple[tuple[str | int, ...], Schedule]]:
    """Each schedule of the file with the place it is written at."""
    for i, schedule in enumerate(pipeline.deploy.schedules):
        rule = next(name for name in ("cron", "rrule", "interval") if getattr(schedule, name) is not None)
        yield ("deploy", "schedules", i, rule), schedule
    if pipeline.deploy.watch is not None:
        yield ("deploy", "watch", "every"), Schedule(interval=pipeline.deploy.watch.every)


def _rule(schedule: Schedule) -> str:
    if schedule.interval is not None:
        return f"every {timedelta(seconds=schedule.interval)}"
    return f"{' '.join((schedule.cron or schedule.rrule or '').split())} ({schedule.timezone})"


def _line(what: object) -> str:
    return " ".join(str(what).removeprefix("Value error, ").split())

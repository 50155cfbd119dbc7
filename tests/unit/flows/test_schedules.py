"""When schedules fire is what Prefect's server says, and what it would read otherwise than written is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from flows.schedules import next_dates
from tasks.pipeline.deploy import Schedule

BERLIN = "Europe/Berlin"


def dates(start: str, count: int = 3, **rule: Any) -> list[str]:
    after = datetime.fromisoformat(start).replace(tzinfo=UTC)
    return [date.isoformat() for date in next_dates(Schedule(**rule), after, count)]


@pytest.mark.parametrize(
    ("start", "rule", "expected"),
    [
        # Spring leaves 02:30 out: it fires an hour earlier. Autumn has it twice: it fires at the first.
        ("2026-03-28", {"cron": "30 2 * * *", "timezone": BERLIN}, ["28T02:30:00+01:00", "29T01:30:00+01:00"]),
        ("2026-10-24", {"cron": "30 2 * * *", "timezone": BERLIN}, ["24T02:30:00+02:00", "25T02:30:00+02:00"]),
        ("2026-03-28", {"cron": "0 3 * * *", "timezone": BERLIN}, ["28T03:00:00+01:00", "29T03:00:00+02:00"]),
        ("2026-10-25", {"cron": "0 * * * *", "timezone": BERLIN}, ["25T02:00:00+02:00", "25T03:00:00+01:00"]),
        ("2026-03-29", {"interval": "1d", "timezone": BERLIN}, ["29T01:00:00+01:00", "30T01:00:00+02:00"]),
        ("2026-03-29", {"interval": "6h", "timezone": BERLIN}, ["29T01:00:00+01:00", "29T08:00:00+02:00"]),
        (
            "2026-03-29",
            {"rrule": "FREQ=DAILY;BYHOUR=9", "timezone": BERLIN},
            ["29T09:00:00+02:00", "30T09:00:00+02:00"],
        ),
    ],
)
def test_clocks_that_are_put_on_and_back(start: str, rule: dict[str, Any], expected: list[str]) -> None:
    assert [date[8:] for date in dates(start, 2, **rule)] == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({"cron": "0 3 31 * *"}, ["2026-01-31", "2026-03-31", "2026-05-31"]),
        ({"cron": "0 3 29 2 *"}, ["2028-02-29", "2032-02-29", "2036-02-29"]),
        ({"cron": "0 3 * * 7"}, ["2026-01-04", "2026-01-11", "2026-01-18"]),
        ({"cron": "@monthly"}, ["2026-01-01", "2026-02-01", "2026-03-01"]),
        ({"rrule": "FREQ=MONTHLY;BYMONTHDAY=31"}, ["2026-01-31", "2026-03-31", "2026-05-31"]),
        ({"rrule": "FREQ=MONTHLY;BYDAY=1MO"}, ["2026-01-05", "2026-02-02", "2026-03-02"]),
        ({"rrule": "DTSTART:20260105T090000\nRRULE:FREQ=DAILY;COUNT=2"}, ["2026-01-05", "2026-01-06"]),
        ({"rrule": "FREQ=DAILY;UNTIL=20260102T000000"}, ["2026-01-01", "2026-01-02"]),
        ({"rrule": "DTSTART:20260105T090000Z\nRRULE:FREQ=DAILY;UNTIL=20260106T090000Z"}, ["2026-01-05", "2026-01-06"]),
        ({"rrule": f"DTSTART;TZID={BERLIN}:20260105T090000\nRRULE:FREQ=DAILY;COUNT=1", "timezone": BERLIN}, ["2026-01-05"]),
    ],
)  # fmt: skip
def test_days_that_are_not_in_every_month_and_rules_that_end(rule: dict[str, Any], expected: list[str]) -> None:
    assert [date[:10] for date in dates("2026-01-01", **rule)] == expected


def test_a_rule_of_minutes_is_not_walked_from_the_year_2020() -> None:
    found = next_dates(Schedule(rrule="FREQ=SECONDLY;INTERVAL=30"))
    assert [(b - a).total_seconds() for a, b in zip(found, found[1:], strict=False)] == [30, 30]


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ({"cron": "0 3 * * x"}, "Prefect refuses it: Invalid cron string"),
        ({"cron": "0 0 3 * * *"}, "6 fields; write five.*Prefect reads a sixth as seconds"),
        ({"cron": "0 0 3 * * * 2027"}, "7 fields; write five"),
        ({"cron": "H 3 * * *"}, "Prefect refuses it"),
        ({"cron": "@reboot"}, "Prefect refuses it"),
        ({"cron": "0 3 31 2 *"}, "never fires: failed to find next date"),
        ({"interval": 1e-9}, "Prefect refuses it: interval must be positive"),
        ({"interval": 1e14}, "Prefect refuses it: .*may not exceed 999,999,999 days"),
        ({"interval": 1e11}, "never fires: date value out of range"),
        ({"rrule": "sometimes"}, "Prefect refuses it: Invalid RRule"),
        ({"rrule": "FREQ=DAILY;COUNT=10"}, "never fires again: without a DTSTART Prefect counts from 2020-01-01"),
        ({"rrule": "FREQ=DAILY;UNTIL=20250101T000000"}, "never fires again: its last date is over"),
        ({"rrule": "FREQ=DAILY;UNTIL=20990101T000000Z"}, "UNTIL"),
        ({"rrule": "FREQ=DAILY;UNTIL=20990101T000000Z", "timezone": BERLIN}, "is UTC, but Prefect reads it by the clock"),
        ({"rrule": "FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30"}, "never fires again: no date fits it"),
        (
            {"rrule": "DTSTART;TZID=America/New_York:20260101T090000\nRRULE:FREQ=DAILY"},
            "TZID=America/New_York would be ignored.*Write `timezone: America/New_York`",
        ),
        ({"rrule": "RDATE;TZID=Asia/Tokyo:20990101T090000", "timezone": BERLIN}, "TZID=Asia/Tokyo would be ignored"),
    ],
)  # fmt: skip
def test_what_never_fires_or_fires_at_other_times_than_written_is_refused(rule: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        next_dates(Schedule(**rule), datetime(2026, 1, 1, tzinfo=UTC))


def test_validate_says_which_line_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "p.yaml").write_text(
        "name: nightly\nstages:\n  texts: {dataset: {sources: [{files: '*.txt'}]}}\n"
        "deploy:\n  schedules:\n    - {cron: '0 3 * * *'}\n    - {cron: '0 3 31 2 *'}\n    - {rrule: 'FREQ=DAILY;COUNT=3'}\n"
    )
    assert cli.main(["validate", str(tmp_path / "p.yaml")]) == 2
    said = capsys.readouterr().err
    assert "p.yaml:7: deploy.schedules[1].cron: it never fires" in said
    assert "p.yaml:8: deploy.schedules[2].rrule: it never fires again" in said
    assert cli.main(["validate", str(tmp_path / "p.yaml"), "--set", "deploy={}"]) == 0

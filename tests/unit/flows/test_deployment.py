"""The `deploy` section: what is wrong with it is said at its line, and what Prefect is told of it is what it says."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.registration import TAKEN, registration
from infra.durations import UNITS, seconds
from infra.errors import ConfigError, UsageError
from infra.open_store import open_store
from tasks.pipeline.dag import Pipeline
from tasks.pipeline.load import load_pipeline
from tasks.pipeline.parameter_form import form, overrides
from tasks.plan.plan import make_plan
from tasks.stage import identity_params

STAGES = """
name: nightly
stages:
  texts: {dataset: {sources: [{files: "*.txt"}], dedup: {near: {threshold: 0.9}}}}
  words: {tokenizer: {data: texts, vocab_size: 300}}
"""


def pipeline(folder: Path, deploy: str = "") -> Pipeline:
    (folder / "a.txt").write_text("a text")
    (folder / "p.yaml").write_text(STAGES + deploy)
    return load_pipeline(folder / "p.yaml", store=str(folder / "store"))


@pytest.mark.parametrize(
    ("deploy", "says"),
    [
        ("{schedules: [{interval: 5 fortnights}]}", "no length of time: write 90s, 15m, 6h or 7d"),
        ("{schedules: [{cron: '0 3 * * *', interval: 6h}]}", "exactly one of `cron`, `interval` and `rrule`"),
        ("{schedules: [{cron: '0 3 * * *', timezone: Mars/Base}]}", "no time zone is called 'Mars/Base'"),
        ("{schedule: []}", "deploy.schedule: unknown field; did you mean schedules?"),
        ("{watch: {stages: [textes]}}", "no stage 'textes' that reads files; did you mean texts?"),
        ("{watch: {stages: [words]}}", "no stage 'words' that reads files; known: texts"),
        ("{parameters: {size: stages.words.vocab_sise}}", "no field 'vocab_sise'; did you mean vocab_size?"),
        ("{parameters: {size: stages.wrds.vocab_size}}", "no stage named 'wrds'; did you mean words?"),
        ("{parameters: {size: words.vocab_size}}", "expected stages.STAGE.FIELD"),
        ("{parameters: {Size: stages.words.vocab_size}}", "'Size' cannot be a parameter"),
        ("{watch: {every: 1s}}", "deploy.watch.every"),
        ("{tags: ['${env:HOME}']}", r"deploy.tags\[0\]: .* only in store, tracking and execution"),
    ],
)
def test_what_is_wrong_is_said_at_its_line(tmp_path: Path, deploy: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        pipeline(tmp_path, f"deploy: {deploy}\n")


def test_it_is_no_part_of_any_identity(tmp_path: Path) -> None:
    plain = pipeline(tmp_path)
    shown = pipeline(tmp_path, "deploy: {schedules: [{interval: 6h}], watch: {quiet: 0s}, overlap: skip}\n")
    store = open_store(plain.store)
    assert [line.key for line in make_plan(plain, store)] == [line.key for line in make_plan(shown, store)]
    assert all(
        identity_params(a.params) == identity_params(b.params)
        for a, b in zip(plain.stages.values(), shown.stages.values(), strict=True)
    )


FORM = "deploy: {parameters: {size: stages.words.vocab_size, near: stages.texts.dataset.dedup.near.threshold}}\n"


def test_the_form_has_the_types_bounds_and_values_of_the_fields(tmp_path: Path) -> None:
    found = pipeline(tmp_path, FORM)
    wanted = registration(found, working_dir=tmp_path, version="abc")
    schema, defaults = (wanted.deployments["run"][name] for name in ("parameter_openapi_schema", "parameters"))
    assert defaults["settings"] == {"size": 300, "near": 0.9}
    check = jsonschema.Draft202012Validator({**schema, "required": ["file"]}).is_valid
    assert check(defaults)
    assert not check({**defaults, "settings": {"size": "many"}})
    assert not check({**defaults, "settings": {"near": 1.5}})
    assert not check({**defaults, "settings": {"sise": 300}})


def test_settings_become_overrides_where_they_differ(tmp_path: Path) -> None:
    found = pipeline(tmp_path, FORM)
    assert overrides(found, {"size": 300, "near": 0.9}) == []
    changed = overrides(found, {"size": 400, "near": 0.9})
    again = load_pipeline(tmp_path / "p.yaml", changed)
    assert again.stages["words"].params.vocab_size == 400  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match=r"near: Input should be less than or equal to 1; sise: .*\n.*: size, near"):
        overrides(found, {"near": 2, "sise": 1})


def test_what_prefect_is_told(tmp_path: Path) -> None:
    deploy = """
deploy:
  schedules: [{cron: "0 3 * * *", timezone: Europe/Berlin}, {interval: 6h}, {rrule: "FREQ=WEEKLY"}]
  tags: [team-a]
  overlap: skip
  watch: {every: 5m}
"""
    wanted = registration(pipeline(tmp_path, deploy), working_dir=tmp_path, version="abc")
    run, watch = wanted.deployments["run"], wanted.deployments["watch"]
    assert [one["schedule"] for one in run["schedules"]] == [
        {"cron": "0 3 * * *", "timezone": "Europe/Berlin", "day_or": True},
        {"interval": 21600.0, "anchor_date": "2000-01-01T00:00:00Z", "timezone": "UTC"},
        {"rrule": "DTSTART:20200101T000000\nFREQ=WEEKLY", "timezone": "UTC"},
    ]
    assert (run["tags"], run["version"]) == (["nightly", "team-a"], "abc")
    assert run["concurrency_options"] == {"collision_strategy": "CANCEL_NEW"}
    assert watch["schedules"][0]["schedule"]["interval"] == 300.0
    assert json.loads(json.dumps(wanted.deployments)) == wanted.deployments
    assert registration(pipeline(tmp_path), working_dir=tmp_path, version=None).deployments.keys() == {"run"}


def test_prefect_is_told_nothing_that_only_the_environment_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BUCKET", "TEAM", "THREADS", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, f"marked-{name}" if name != "THREADS" else "1")
    (tmp_path / "a.txt").write_text("a text")
    outside = (
        'store: "${env:BUCKET}"\ntracking: {entity: "${env:TEAM}"}\nexecution: {default: {threads: "${env:THREADS}"}}\n'
    )
    (tmp_path / "p.yaml").write_text(STAGES + FORM + outside)
    found = load_pipeline(tmp_path / "p.yaml")
    assert (found.store, found.tracking.entity) == ("marked-BUCKET", "marked-TEAM")
    wanted = registration(found, working_dir=tmp_path, version=None)
    assert "marked" not in json.dumps([wanted.deployments, wanted.automations])
    assert all("job_variables" not in body for body in wanted.deployments.values())


def test_a_form_without_parameters_is_empty(tmp_path: Path) -> None:
    assert form(pipeline(tmp_path))().model_dump() == {}


@given(st.integers(0, 10_000), st.sampled_from(sorted(UNITS)))
def test_durations(number: int, unit: str) -> None:
    assert seconds(f"{number}{unit}") == number * UNITS[unit]
    assert seconds(float(number)) == number


def test_every_name_that_prefect_has_for_a_run_that_does_not_yet_begin_is_waited_for() -> None:
    """One that was left out would pass for the beginning that is waited for, and the run stand for ever."""
    import prefect.states
    from prefect.client.schemas.objects import State, StateType

    names = set()
    for make in vars(prefect.states).values():
        if callable(make) and "State[R]" in str(getattr(make, "__annotations__", {}).get("return")):
            with contextlib.suppress(TypeError):  # one that needs more than its name is none of these
                state: State = make()
                names |= {state.name} if state.type in (StateType.PENDING, StateType.CANCELLING) else set()
    assert {f"prefect.flow-run.{name}" for name in names} == {*TAKEN} and len(names) == 4

"""No traceback from a pipeline file: whatever it holds, `validate` and `plan` end with 0 or 2, and say where a fault is."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flows import cli
from infra.yaml_source import dotted
from tasks.pipeline.schema import schema

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
STRANGER = re.compile(r"://|hf:|given")
"""What `plan` would look for outside this machine."""
QUIET = list(HealthCheck)
FEW = settings(max_examples=20, deadline=None, derandomize=True, database=None, suppress_health_check=QUIET)
MANY = settings(max_examples=2000, deadline=None, database=None, suppress_health_check=QUIET)


@pytest.fixture(scope="module")
def odd(load: Any) -> ModuleType:
    module: ModuleType = load("unit/odd_pipelines.py")
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the files lie; no pattern of theirs finds more than one text."""
    place = tmp_path / "a" / "b" / "c"
    (place / "data").mkdir(parents=True)
    (place / "data" / "a.txt").write_text("one text\n")
    monkeypatch.chdir(place)
    for name in ("AWS_ACCESS_KEY_ID", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield place


pipeline_schema = cache(schema)


@cache
def good(name: str) -> Any:
    return yaml.safe_load((Path(__file__).parents[3] / "configs" / name).read_text(encoding="utf-8"))


def ends_well(folder: Path, text: str) -> None:
    """`validate`, and `plan` of what it lets through, end as they should on a file with this text."""
    file = folder / "p.yaml"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    code, _, said = run("validate", str(file))
    assert code in (0, 2), said
    if code == 2:
        fault = said.removeprefix("forgeline: ")
        assert re.match(rf"{re.escape(str(file))}(:\d+)?: .", fault), said
    elif not STRANGER.search(text):
        code, _, said = run("plan", str(file), "--store", str(folder / "store"))
        assert code in (0, 2) or (code == 3 and "stages." in said), said


def run(*words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    return code, out.getvalue(), err.getvalue()


def made_of_the_schema(odd: ModuleType, folder: Path, data: st.DataObject) -> None:
    whole = pipeline_schema()
    pipeline = odd.from_schema(data.draw, whole, whole["$defs"])
    if isinstance(pipeline, dict) and data.draw(st.integers(0, 9)):
        pipeline["name"] = "odd"
    ends_well(folder, odd.as_yaml(pipeline))


def one_stage_of_the_schema(odd: ModuleType, folder: Path, data: st.DataObject) -> None:
    """A stage of the quickstart replaced by one of the schema: the rest of the file is right."""
    whole = pipeline_schema()
    pipeline = {**good("quickstart.yaml")}
    name = data.draw(st.sampled_from(list(pipeline["stages"])))
    body = odd.from_schema(data.draw, whole["properties"]["stages"]["additionalProperties"], whole["$defs"], 1)
    pipeline["stages"] = {**pipeline["stages"], name: body}
    ends_well(folder, odd.as_yaml(pipeline))


def a_good_file_with_faults(odd: ModuleType, folder: Path, data: st.DataObject) -> None:
    pipeline = good(data.draw(st.sampled_from([path.name for path in CONFIGS])))
    for _ in range(data.draw(st.integers(1, 3))):
        pipeline = odd.with_fault(data.draw, pipeline)
    ends_well(folder, odd.as_yaml(pipeline))


def text_that_is_no_plain_data(odd: ModuleType, folder: Path, data: st.DataObject) -> None:
    text = odd.as_yaml(good(data.draw(st.sampled_from([path.name for path in CONFIGS]))))
    for _ in range(data.draw(st.integers(1, 2))):
        text = odd.with_raw_text(data.draw, text)
    ends_well(folder, text)


def an_override(odd: ModuleType, folder: Path, data: st.DataObject) -> None:
    """A field of a good file, spelled as messages spell it, set to anything at all."""
    config = Path(__file__).parents[3] / "configs" / data.draw(st.sampled_from([path.name for path in CONFIGS]))
    field = dotted(data.draw(st.sampled_from(list(odd.places(good(config.name))))))
    field = data.draw(
        st.sampled_from([field, field, f"{field}.x", f"{field}[0]", f"{field}[7].x", field.replace("[", ".")])
    )
    code, _, said = run("validate", str(config), "--set", f"{field}={data.draw(odd.RAW | odd.WORDS)}")
    assert code in (0, 2), said
    assert code == 0 or re.match(
        rf"(--set {re.escape(field)}|{re.escape(str(config))}:\d+)", said[len("forgeline: ") :]
    )


WAYS = [made_of_the_schema, one_stage_of_the_schema, a_good_file_with_faults, text_that_is_no_plain_data, an_override]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_pipeline_file_never_ends_in_a_traceback(way: Any, odd: ModuleType, folder: Path) -> None:
    @FEW
    @given(st.data())
    def search(data: st.DataObject) -> None:
        way(odd, folder, data)

    search()


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_thousands_of_pipeline_files_end_in_no_traceback(way: Any, odd: ModuleType, folder: Path) -> None:
    @MANY
    @given(st.data())
    def search(data: st.DataObject) -> None:
        way(odd, folder, data)

    search()

"""Lineage: up from a ref to every file, param and second; down from a file to every artifact and ref."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from flows import cli
from infra import refs
from infra.artifacts import Manifest
from infra.checksum import sealed
from infra.impact import impact
from infra.lineage import ancestors, changes, find, previous
from infra.open_store import open_store
from infra.store import Store

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def commit(load: Any) -> Any:
    return load("unit/committed.py").commit


def shown(capsys: pytest.CaptureFixture[str], store: Store, *arguments: str) -> str:
    assert cli.main(["lineage", *arguments, "--store", store.url]) == 0
    return capsys.readouterr().out


def two_models(store: Store, commit: Any) -> tuple[dict[str, Manifest], dict[str, Manifest]]:
    """The same small pipeline twice; the second has another file, another rate, and the old tokenizer."""
    made: list[dict[str, Manifest]] = []
    for rate, sources in ((0.1, {"x.txt": A, "y.txt": B}), (0.2, {"x.txt": A, "z.txt": C})):
        corpus = commit(store, "corpus", sources=sources)
        tokenizer = commit(store, "tokenizer", kind="tokenizer", params={"vocab_size": 320})
        base = commit(
            store,
            "base",
            {"data": corpus, "tokenizer": tokenizer},
            kind="pretrain",
            params={"rate": rate, "model": {"type": "llama", "layers": 2}},
            producer={"commit": "c0ffee", "host": "box", "cpus": 4, "versions": {"torch": "2.13.0"}},
        )
        refs.advance(store, "p/base/latest", base.ref)
        made.append({"corpus": corpus, "tokenizer": tokenizer, "base": base})
    return made[0], made[1]


def test_a_ref_leads_to_everything_it_was_made_from(
    store: Store, commit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, new = two_models(store, commit)
    found = json.loads(shown(capsys, store, "p/base/latest", "--json"))
    by_stage = {artifact["stage"]: artifact for artifact in found["artifacts"]}
    assert set(by_stage) == {"base", "corpus", "tokenizer"}
    assert {name: by_stage[name]["digest"] for name in by_stage} == {name: m.digest for name, m in new.items()}
    base = by_stage["base"]
    assert (base["commit"], base["host"], base["cpus"], base["seconds"]) == ("c0ffee", "box", 4, 2.5)
    assert base["timings"] == {"fetch": 0.5, "run": 2.0} and base["versions"] == {"torch": "2.13.0"}
    assert by_stage["corpus"]["sources"] == [{"path": "x.txt", "sha256": A}, {"path": "z.txt", "sha256": C}]
    text = shown(capsys, store, "p/base/latest")
    assert re.search(r"data: corpus  dataset \w{12}  content " + new["corpus"].digest[:12], text)
    assert f"z.txt  sha256 {C[:16]}" in text and "2.5\u202fs, run r1, commit c0ffee, host box (4 CPUs)" in text


def test_what_differs_from_the_one_before_is_told_for_every_artifact(store: Store, commit: Any) -> None:
    old, new = two_models(store, commit)
    start, ref = find(store, f"pretrain/{new['base'].key[:9]}")
    before = previous(store, ref, start)
    assert (ref, before) == ("p/base/latest", ("pretrain", old["base"].key))
    found = changes(ancestors(store, start), start, ancestors(store, before), before)
    assert [(c.name, c.before, c.now) for c in found[start]] == [("rate", 0.1, 0.2)]
    (files,) = found["dataset", new["corpus"].key]
    assert (files.name, files.now) == ("source files", "2 (1 new, 1 gone, 0 changed)")
    assert set(found) == {start, ("dataset", new["corpus"].key)}, "the tokenizer is the same"
    assert previous(store, ref, before) is None


def test_what_is_gone_or_damaged_is_shown_as_such(
    store: Store, commit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, new = two_models(store, commit)
    store.delete(f"{new['corpus'].ref.prefix}/manifest.json")
    store.write_bytes(f"{new['tokenizer'].ref.prefix}/manifest.json", b"{")
    text = shown(capsys, store, "p/base/latest")
    assert f"data: dataset  dataset {new['corpus'].key[:12]}  MISSING: not in the store" in text
    assert "MISSING: damaged: the manifest is not valid JSON" in text
    for form in ("--mermaid", "--openlineage", "--json"):
        assert shown(capsys, store, "p/base/latest", form)


def test_damaged_records_lose_the_files_only(store: Store, commit: Any) -> None:
    data = commit(store, "corpus", sources={"x.txt": A})
    store.write_bytes(f"{data.ref.prefix}/{data.attempt}/records/sources.json", b"[]")
    (node,) = ancestors(store, ("dataset", data.key)).nodes.values()
    assert node.manifest is not None and node.sources == () and "records is damaged" in node.problem


def test_a_manifest_that_names_itself_or_climbs_ends_the_walk(store: Store, commit: Any) -> None:
    made = commit(store, "a")
    path = f"{made.ref.prefix}/manifest.json"
    evil = {"kind": "..", "key": "../../etc", "digest": "", "stage": ""}
    data = store.read_json(path)
    inputs = {"x": [{"kind": "dataset", "key": made.key}, evil, "nonsense"]}
    store.write_json(path, sealed({**data, "inputs": inputs}))
    found = ancestors(store, ("dataset", made.key))
    assert set(found.nodes) == {("dataset", made.key), ("..", "../../etc")}
    assert "unsafe" in found.nodes["..", "../../etc"].problem


def test_a_file_leads_down_to_every_artifact_and_ref(store: Store, commit: Any, tmp_path: Path) -> None:
    old, new = two_models(store, commit)
    refs.advance(store, "p/production", old["base"].ref, note="by hand")
    both = {m.key for made in (old, new) for name, m in made.items() if name != "tokenizer"}
    assert {key for _, key in impact(store, "x.txt").graph.nodes} == both
    only_old = impact(store, B[:8])
    assert {key for _, key in only_old.graph.nodes} == {old["corpus"].key, old["base"].key}
    assert [(use.name, use.number, use.current) for use in only_old.refs] == [
        ("p/base/latest", 1, False),
        ("p/production", 1, True),
    ]
    here = tmp_path / "elsewhere.txt"
    here.write_bytes(b"bytes")
    commit(store, "third", sources={"in/here.txt": hashlib.sha256(b"bytes").hexdigest()})
    assert [why.partition(" ")[0] for why in impact(store, str(here)).starts.values()] == ["in/here.txt"]
    for asked in (new["tokenizer"].key[:12], new["tokenizer"].digest):
        assert {key for _, key in impact(store, asked).graph.nodes} == {
            m.key for m in (new["tokenizer"], old["base"], new["base"])
        }


def test_what_nobody_used_is_said_so(store: Store, commit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, "corpus", sources={"in/x.txt": A})
    for asked, hint in (("out/x.txt", "Files of that name: in/x.txt"), ("abcdef0", "known: in/x.txt")):
        assert cli.main(["lineage", "--impacted-by", asked, "--store", store.url]) == 2
        assert hint in capsys.readouterr().err
    assert cli.main(["lineage", "p/nothing", "--store", store.url]) == 2
    assert cli.main(["lineage", "--store", store.url]) == 2


HOSTILE = '<b>"x"|]\n--> y</b>.txt'


def test_pictures_hold_every_artifact_and_no_markup_of_others(
    store: Store, commit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = commit(store, "corpus", sources={HOSTILE: A})
    model = commit(store, "base", {"data": data}, kind="pretrain", params={"note": "<script>"})
    refs.advance(store, "p/base/latest", model.ref)
    chart = shown(capsys, store, "p/base/latest", "--mermaid")
    assert chart.startswith("flowchart TD\n") and 'a1 -->|"data"| a0' in chart
    assert all(re.fullmatch(r'  \w+([\[(].*[\])]| -->(\|"data"\|)? \w+)', line) for line in chart.splitlines()[1:])
    assert HOSTILE.partition("\n")[0] not in chart
    page = tmp_path / "lineage.html"
    shown(capsys, store, "--impacted-by", A, "--html", str(page))
    html = page.read_text(encoding="utf-8")
    assert html.count("<svg") == 1 and data.key in html and model.key in html and A in html
    assert "<b>" not in html and "<script" not in html and "&lt;b&gt;" in html


def test_openlineage_events_are_what_the_spec_asks_for(
    store: Store, commit: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    _, new = two_models(store, commit)
    lines = shown(capsys, store, "p/base/latest", "--openlineage").splitlines()
    assert lines == shown(capsys, store, "p/base/latest", "--openlineage").splitlines(), "run ids are deterministic"
    events = [json.loads(line) for line in lines]
    for event in events:
        jsonschema.validate(event, RUN_EVENT, format_checker=jsonschema.FormatChecker())
    last = events[-1]
    assert last["job"] == {"namespace": "forgeline", "name": "p.base", "facets": last["job"]["facets"]}
    outputs = {event["outputs"][0]["name"]: event["outputs"][0] for event in events}
    assert [outputs[item["name"]]["namespace"] for item in last["inputs"]] == [store.url] * 2
    assert {item["facets"]["version"]["datasetVersion"] for item in last["inputs"]} == {
        new["corpus"].digest,
        new["tokenizer"].digest,
    }
    (data,) = [event for event in events if event["job"]["name"] == "p.corpus"]
    assert [(item["name"], item["facets"]["version"]["datasetVersion"]) for item in data["inputs"]] == [
        ("x.txt", A),
        ("z.txt", C),
    ]
    assert len({event["run"]["runId"] for event in events}) == 3
    assert len({event["run"]["facets"]["parent"]["run"]["runId"] for event in events}) == 1


FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": {"format": "uri"}, "_schemaURL": {"format": "uri"}},
    },
}
NAMED = {
    "type": "object",
    "required": ["namespace", "name"],
    "properties": {"namespace": {"type": "string"}, "name": {"type": "string"}, "facets": FACETS},
}
RUN_EVENT = {
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": {"type": "string", "format": "uri"},
        "schemaURL": {"const": "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"},
        "eventType": {"const": "COMPLETE"},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": FACETS},
        },
        "job": NAMED,
        "inputs": {"type": "array", "items": NAMED},
        "outputs": {"type": "array", "items": NAMED, "minItems": 1},
    },
}
"""What OpenLineage.json 2-0-2 requires of a RunEvent."""


PIPELINE = """
name: p
stages:
  old: {dataset: {sources: [{files: "data/old/*.txt", format: text}]}}
  new: {dataset: {sources: [{files: "data/new/*.txt", format: text}]}}
  drift: {compare: {data: new, against: old}}
"""


def test_a_source_file_of_a_real_run_leads_to_what_was_made_of_it(tmp_path: Path, store: Store, load: Any) -> None:
    for name, word in (("old", "harbour"), ("new", "orchard")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(40):
            (tmp_path / "data" / name / f"{i}.txt").write_text(
                f"The {word} has {i} things of kind {i * i}, it is said.\n"
            )
    (tmp_path / "pipeline.yaml").write_text(PIPELINE)
    made = load("unit/committed.py").run(tmp_path / "pipeline.yaml", store, tmp_path / "run")
    found = impact(store, str(tmp_path / "data" / "new" / "7.txt"))
    assert [key for _, key in found.starts] == [made["new"].key]
    assert {key for _, key in found.graph.nodes} == {made["new"].key, made["drift"].key}
    assert {(use.name, use.current) for use in found.refs} == {("p/new/latest", True), ("p/drift/latest", True)}
    up = ancestors(store, ("compare", made["drift"].key))
    sources = {file.sha256 for node in up.nodes.values() for file in node.sources}
    assert len(up.nodes) == 3 and len(sources) == 80

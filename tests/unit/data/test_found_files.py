"""What names mean: brackets, links, clutter, suffixes, names that are no UTF-8, buckets and web addresses."""

from __future__ import annotations

import functools
import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import ConfigError, StageError, StoreError
from infra.source_files import digests, local_copy
from tasks.data.reading.file_patterns import keeps, split_root, walk
from tasks.data.reading.found_files import find_files, links_not_followed
from tasks.data.reading.source_digests import hashed
from tasks.data.reading.sources import Source
from tasks.pipeline.load import load_pipeline


def source(files: str, **more: Any) -> Source:
    return Source.model_validate({"files": files, **more})


def paths(files: str, **more: Any) -> list[str]:
    return [file.path for file in find_files([source(files, **more)])]


def write(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


# --- names that look like patterns ------------------------------------------------------------------------------------


def test_a_folder_with_brackets_in_its_name_is_that_folder(tmp_path: Path) -> None:
    """`run[1]` as a pattern is `run1`, the project beside it."""
    write(tmp_path, "run[1]/data/a.txt", "run1/data/b.txt")
    assert paths(f"{tmp_path}/run[1]/data/*.txt") == ["a.txt"]
    assert paths(f"{tmp_path}/run[1]/**/*.txt") == ["data/a.txt"]
    assert paths(f"{tmp_path}/run[12]/data/*.txt") == ["run1/data/b.txt"], "no folder is called so"


def test_the_pipeline_may_lie_in_such_a_folder(tmp_path: Path) -> None:
    write(tmp_path, "run[1]/data/a.txt", "run1/data/b.txt", "wh?t*/a.txt", "whatever/b.txt")
    (tmp_path / "run[1]/p.yaml").write_text('name: p\nstages: {d: {dataset: {sources: [{files: "data/*.txt"}]}}}\n')
    params = load_pipeline(tmp_path / "run[1]/p.yaml").stages["d"].params
    assert [file.path for file in find_files(params.sources)] == ["a.txt"]  # type: ignore[attr-defined]
    assert paths(f"{tmp_path}/wh?t*/*.txt") == ["a.txt"]


def test_files_whose_names_look_like_patterns(tmp_path: Path) -> None:
    write(tmp_path, "a[1].txt", "a1.txt", "*.txt", "what?.txt")
    assert paths(f"{tmp_path}/a[1].txt") == ["a[1].txt"]
    assert paths(f"{tmp_path}/what?.txt") == ["what?.txt"]
    assert paths(f"{tmp_path}/*.txt") == ["*.txt", "a1.txt", "a[1].txt", "what?.txt"], "an accident hides nothing"


NAME = st.text("ab[]*?!.", min_size=1, max_size=6).filter(lambda name: name not in (".", "..") and name.strip("*"))


@given(st.lists(NAME, min_size=1, max_size=3))
def test_what_is_there_by_its_name_is_found_by_it(names: list[str]) -> None:
    """Any path is a name where it exists, and its rest then matches the last part of it."""
    path = "/".join(names)
    folder, rest = split_root(path, lambda name: path == name or path.startswith(f"{name}/"))
    assert f"{folder.as_posix()}/" == "./" * (len(names) == 1) + "".join(f"{name}/" for name in names[:-1])
    assert keeps(names[-1], rest)


# --- links ------------------------------------------------------------------------------------------------------------


def test_linked_folders_are_followed_and_circles_named(tmp_path: Path) -> None:
    write(tmp_path, "data/new.txt", "real/old.txt", "real/deep/older.txt", "else/x.txt")
    (tmp_path / "data/archive").symlink_to(tmp_path / "real")
    (tmp_path / "data/loop").symlink_to(tmp_path / "data")
    (tmp_path / "real/deep/up").symlink_to(tmp_path / "real")
    (tmp_path / "real/deep/back").symlink_to("../../data/archive/deep")
    (tmp_path / "data/gone").symlink_to("../unmounted")
    (tmp_path / "data/lib.so").symlink_to("nowhere.so")
    (tmp_path / "data/self").symlink_to("self")
    files = f"{tmp_path}/data/**/*.txt"
    assert paths(files) == ["archive/deep/older.txt", "archive/old.txt", "new.txt"]
    (said,) = links_not_followed([source(files)])
    assert said.startswith("sources[0]: links to folders that were not followed: 5 (")
    for link in (
        "loop -> ",
        "archive/deep/up -> ",
        "archive/deep/back -> ",
        "gone -> ../unmounted, which is not there",
    ):
        assert link in said
    assert links_not_followed([source(files, exclude=["gone", "self", "**/loop/**", "**/deep/**", "loop/**"])]) == []
    assert links_not_followed([source(f"{tmp_path}/data/*.txt")]) == []


def test_two_folders_that_lead_to_each_other_end(tmp_path: Path) -> None:
    write(tmp_path, "a/x.txt", "b/y.txt")
    (tmp_path / "a/b").symlink_to(tmp_path / "b")
    (tmp_path / "b/a").symlink_to(tmp_path / "a")
    assert paths(f"{tmp_path}/a/**/*.txt") == ["b/y.txt", "x.txt"]


def test_a_link_to_a_file_that_is_gone_is_an_error(tmp_path: Path) -> None:
    write(tmp_path, "a.txt")
    for i in range(7):
        (tmp_path / f"{i}.txt").symlink_to(f"../gone/{i}.txt")
    with pytest.raises(
        StageError, match=r"(?s)files: links that lead nowhere: 7 \(0\.txt -> \.\./gone/0\.txt, .*exclude"
    ):
        paths(f"{tmp_path}/*.txt")
    assert paths(f"{tmp_path}/*.txt", exclude=["[0-9].txt"]) == ["a.txt"]


# --- clutter ----------------------------------------------------------------------------------------------------------


CLUTTER = (".hidden.csv", ".ipynb_checkpoints/a.csv", "_SUCCESS", "~$a.csv", "Thumbs.db", "_temporary/0/a.csv")


def test_clutter_is_left_out_unless_it_is_spelt(tmp_path: Path) -> None:
    write(tmp_path, "a.csv", "sub/b.csv", "_private.csv", *CLUTTER)
    memory = fsspec.filesystem("memory")
    memory.pipe({f"/clutter/{name}": b"x" for name in ("a.csv", "sub/b.csv", "_private.csv", *CLUTTER)})
    memory.pipe("/clutter/empty_$folder$", b"")
    for root in (str(tmp_path), "memory://clutter"):
        assert paths(f"{root}/**/*", format="csv") == ["_private.csv", "a.csv", "sub/b.csv"]
        assert paths(f"{root}/_SUCCESS", format="lines") == ["_SUCCESS"]
        assert paths(f"{root}/.*", format="csv") == [".hidden.csv"]


# --- suffixes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"files": "*.jsonl"}, "write `format: jsonl`, or `format: text` if a whole file is one example"),
        ({"files": "data/a.CSV.gz"}, "write `format: csv`"),
        ({"files": "s3://bucket/**/*.parquet"}, "write `format: parquet`"),
        ({"files": "a.parquet", "format": "text"}, "contradicts `format: text`: write `format: parquet`"),
        ({"files": "a.parquet.gz", "format": "parquet"}, "compressed within: unpack .gz"),
        ({"files": "a.csv", "format": "jsonl"}, "contradicts `format: jsonl`: write `format: csv`"),
        ({"files": "https://host/a.csv?key=1.jsonl", "format": "jsonl"}, "write `format: csv`"),
        ({"files": "a.txt", "format": "arrow"}, "contradicts `format: arrow`: write `format: text`"),
        ({"files": "a.tsv", "format": "csv"}, 'write delimiter: "\\t"'),
        ({"files": "a.zip", "format": "csv"}, ".zip is not read: unpack it"),
        ({"files": "a.tar.gz", "format": "jsonl"}, ".tar is not read: unpack it"),
        ({"files": "*.xlsx", "format": "csv"}, "save it as csv, jsonl or Parquet"),
        ({"files": f"hf://datasets/org/name@{'0' * 40}/*.parquet"}, "write `format: parquet`"),
        ({"files": "${HOME}/a.txt"}, "nothing is put in for ${...} but ${python:stdlib}"),
        ({"files": "data/[z-a].txt"}, "is no pattern"),
        ({"files": "a.txt", "exclude": ["[z-a]"]}, "is no pattern"),
    ],
)
def test_validate_says_what_the_name_of_a_file_contradicts(tmp_path: Path, given: dict[str, Any], said: str) -> None:
    import json

    file = tmp_path / "p.yaml"
    file.write_text(f"name: p\nstages:\n  d:\n    dataset: {{sources: [{json.dumps(given)}]}}\n")
    with pytest.raises(ConfigError) as error:
        load_pipeline(file)
    assert str(error.value).startswith(f"{file}:4: stages.d.dataset.sources[0]: ")
    assert said in str(error.value)


@pytest.mark.parametrize(
    "given",
    [
        {"files": "*.jsonl", "format": "text"},
        {"files": "*.csv", "format": "lines"},
        {"files": "*.txt", "format": "csv"},
        {"files": "*.json", "format": "jsonl"},
        {"files": "part-*", "format": "parquet"},
        {"files": "a.tsv", "format": "csv", "delimiter": ","},
        {"files": "*.jsonl*"},
        {"files": "a.csv.gz", "format": "csv"},
        {"files": "**/*.py"},
    ],
)
def test_what_contradicts_nothing_is_read(given: dict[str, Any]) -> None:
    Source.model_validate(given)


def test_files_that_a_pattern_without_a_suffix_finds(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", "b.jsonl")
    with pytest.raises(StageError, match=r"(?s)sources\[0\]\.files: b\.jsonl: .*write `format: jsonl`.*`exclude` it"):
        paths(f"{tmp_path}/*")
    assert paths(f"{tmp_path}/*", exclude=["*.jsonl"]) == ["a.txt"]
    with pytest.raises(StageError, match=rf"(?s)no file matches.*That is a folder: write {tmp_path}/\*"):
        paths(str(tmp_path))


# --- names that are no UTF-8 ------------------------------------------------------------------------------------------


def test_file_names_that_are_no_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    raw = os.fsencode(tmp_path) + b"/caf\xe9.txt"
    Path(os.fsdecode(raw)).write_text("hello")
    os.utime(raw, ns=(1, 1))
    found = find_files([source(f"{tmp_path}/*.txt")])
    assert [file.path for file in found] == ["caf\\xe9.txt"]
    assert hashed(found) == hashed(found)
    with local_copy(found[0].place.location, tmp_path) as place:
        assert place.read_text() == "hello"


# --- buckets and the web ----------------------------------------------------------------------------------------------


def test_brackets_in_a_bucket(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/brackets/run[1]/a.txt": b"a", "/brackets/run1/b.txt": b"b", "/brackets/a[1].txt": b"c"})
    assert paths("memory://brackets/run[1]/*.txt") == ["a.txt"]
    assert paths("memory://brackets/run[12]/*.txt") == ["run1/b.txt"]
    assert paths("memory://brackets/a[1].txt") == ["a[1].txt"]
    with pytest.raises(StageError, match=r"That is a folder: write memory://brackets/run1/\*"):
        paths("memory://brackets/run1")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a server of what lies in `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_file_of_the_web(web: str, tmp_path: Path) -> None:
    import gzip

    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "hello"}\n'))
    (file,) = find_files([source(f"{web}/a.jsonl.gz?download=1", format="jsonl")])
    assert file.path == "a.jsonl.gz" and file.place.size == (tmp_path / "a.jsonl.gz").stat().st_size
    assert len(digests([file.place])[0]) == 64
    (tmp_path / "scratch").mkdir()
    with local_copy(file.place.location, tmp_path / "scratch") as copy:
        assert copy.name == "a.jsonl.gz" and gzip.decompress(copy.read_bytes()) == b'{"text": "hello"}\n'
    with pytest.raises(StoreError, match=r"(?s)b\.jsonl: there is nothing of this name.*Check the address"):
        find_files([source(f"{web}/b.jsonl", format="jsonl")])


def test_a_kind_of_place_that_nobody_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="s4"):
        paths("s4://bucket/*.txt")


def test_walk_of_a_folder_that_is_excluded_by_name(tmp_path: Path) -> None:
    """`exclude` names files; a folder goes with everything below it as `x/**`."""
    write(tmp_path, "x/a.txt", "y/b.txt")
    assert walk(tmp_path, "**/*.txt", ["x"]).files == ["x/a.txt", "y/b.txt"]
    assert walk(tmp_path, "**/*.txt", ["x/**"]).files == ["y/b.txt"]


def test_a_template_of_a_source_needs_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="a whole file is one example"):
        source("a.ndjson")

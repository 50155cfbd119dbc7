"""Which files a dataset reads, how they are named, and what is said when there are none."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from infra.source_files import digests, local, local_copy
from tasks.data.reading.file_patterns import compiled, split_root, walk
from tasks.data.reading.found_files import find_files
from tasks.data.reading.functions import python_functions
from tasks.data.reading.records import records
from tasks.data.reading.rows import Columns, Rejected, Row, read_rows
from tasks.data.reading.source_digests import hashed, hub_digests
from tasks.data.reading.sources import Source
from tasks.stage import identity_params
from tasks.stages import dataset


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.py", "pkg/b.py", "pkg/deep/c.py", "pkg/test/t.py", "pkg/notes.txt", ".hidden/d.py", "pkg/.e.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    return tmp_path


def paths(**source: object) -> list[str]:
    return [f.path for f in find_files([Source.model_validate(source)])]


def test_glob_reads_as_in_a_shell(tree: Path) -> None:
    assert paths(files=f"{tree}/**/*.py") == ["a.py", "pkg/b.py", "pkg/deep/c.py", "pkg/test/t.py"]
    assert paths(files=f"{tree}/*.py") == ["a.py"]
    assert paths(files=f"{tree}/pkg/*") == ["b.py", "notes.txt"]
    assert paths(files=f"{tree}/**/[bc].py", exclude=["**/deep/**"]) == ["pkg/b.py"]
    assert paths(files=f"{tree}/a.py") == ["a.py"]
    assert paths(files=f"{tree}/**/*.py", exclude=["**/test/**", "a.py"]) == ["pkg/b.py", "pkg/deep/c.py"]


@given(st.text("ab/.", min_size=1, max_size=12), st.text("ab*?/.", min_size=1, max_size=8))
def test_pattern_agrees_with_fnmatch_inside_one_component(path: str, pattern: str) -> None:
    import fnmatch

    if "/" in path or "/" in pattern or "**" in pattern:
        return
    assert bool(compiled(pattern).fullmatch(path)) == fnmatch.fnmatchcase(path, pattern)


def test_excluded_folder_is_not_entered(tree: Path) -> None:
    if os.geteuid() == 0:
        (tree / "pkg/test").rename(tree / "pkg/gone")
        (tree / "pkg/test").symlink_to(tree)  # following it would never end
    else:
        (tree / "pkg/test").chmod(0)
    assert walk(tree, "**/*.py", ["pkg/test/**", "pkg/gone/**"]).files == ["a.py", "pkg/b.py", "pkg/deep/c.py"]


def test_split_root() -> None:
    assert split_root("/x/y/**/*.py") == (Path("/x/y"), "**/*.py")
    assert split_root("/x/y.txt") == (Path("/x"), "y.txt")


def test_no_file_matches(tree: Path) -> None:
    with pytest.raises(StageError, match=r"sources\[0\].files: no file matches \*\*/\*.rs under"):
        paths(files=f"{tree}/**/*.rs")
    with pytest.raises(StageError, match="after exclude"):
        paths(files=f"{tree}/*.py", exclude=["*"])


def test_unreadable_place(tree: Path) -> None:
    with pytest.raises(StageError, match=r"sources\[0\].python_functions: cannot read .*nowhere: No such file"):
        paths(python_functions=f"{tree}/nowhere")


def test_listed_file_that_vanishes_is_an_error_not_bad_data(tree: Path) -> None:
    files = find_files([Source.model_validate({"files": f"{tree}/*.py"})])
    (tree / "a.py").unlink()
    with pytest.raises(StageError, match=r"sources: a.py: cannot read"):
        hashed(files)


def test_a_source_is_files_or_functions() -> None:
    for wrong in ({}, {"files": "a", "python_functions": "b"}, {"files": "a", "format": "python_functions"}):
        with pytest.raises(ValidationError):
            Source.model_validate(wrong)


def test_functions_and_text_of_the_same_files_are_different_data(tree: Path) -> None:
    text = dataset.Params.model_validate({"sources": [{"files": f"{tree}/**/*.py"}]})
    code = dataset.Params.model_validate({"sources": [{"python_functions": str(tree)}]})
    assert dataset.sources(text) == dataset.sources(code)
    assert identity_params(text) != identity_params(code)


def test_place_is_not_identity_but_content_is(tmp_path: Path) -> None:
    digests = []
    for folder, content in (("one", "x"), ("two", "x"), ("three", "y")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(content)
        params = dataset.Params.model_validate({"sources": [{"files": f"{tmp_path / folder}/*.txt"}]})
        digests.append((dataset.sources(params), identity_params(params)))
    assert digests[0] == digests[1] != digests[2]


def test_swapping_files_between_unlike_sources_changes_the_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text('{"text": "a"}')
    (tmp_path / "b.txt").write_text('{"text": "b"}')

    def listed(first: str, second: str) -> object:
        both = [{"files": f"{tmp_path}/{first}"}, {"files": f"{tmp_path}/{second}", "format": "jsonl"}]
        return dataset.sources(dataset.Params.model_validate({"sources": both}))

    assert listed("a.txt", "b.txt") != listed("b.txt", "a.txt")


def test_a_light_and_a_heavy_source_that_change_places_change_the_sources(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(name)

    def listed(first: str, second: str) -> object:
        both = [{"files": f"{tmp_path}/{first}"}, {"files": f"{tmp_path}/{second}", "weight": 0.5}]
        return dataset.sources(dataset.Params.model_validate({"sources": both}))

    assert listed("a.txt", "b.txt") != listed("b.txt", "a.txt")


def test_two_sources_with_one_name_need_a_prefix(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "f.txt").write_text(folder)
    both = [{"files": f"{tmp_path}/one/*"}, {"files": f"{tmp_path}/two/*"}]
    with pytest.raises(StageError, match=r"two sources hold a file named f\.txt"):
        find_files([Source.model_validate(s) for s in both])
    named = [Source.model_validate({**s, "name": n}) for s, n in zip(both, ("x", "y"), strict=True)]
    assert [f.path for f in find_files(named)] == ["x/f.txt", "y/f.txt"]


def test_standard_library_is_listed_fast_and_without_heavy_imports() -> None:
    code = """
import sys, time
from tasks.stages import dataset, evaluate, export, gate, pack, promote, quantize, tokenizer
params = dataset.Params.model_validate({"sources": [{"files": "${python:stdlib}/**/*.py", "exclude": ["**/test/**"]}]})
start = time.process_time()
files = dataset.sources(params)
print(len(files), time.process_time() - start, any("site-packages" in f.path for f in files))
heavy = {"torch", "transformers", "onnx", "onnxruntime", "pyarrow", "rensa", "tokenizers", "numpy"} & set(sys.modules)
print(sorted(heavy - {"numpy"}))
"""
    lines = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.splitlines()
    count, seconds, foreign = lines[0].split()
    assert int(count) > 500
    assert foreign == "False"
    assert float(seconds) < 1.0  # 0.1 s where nothing else runs
    assert lines[1] == "[]"


def test_functions_are_methods_and_functions_but_not_closures() -> None:
    source = '''
import functools
def plain(x):
    def inner(): pass
    return x
class A:
    @functools.cache
    def m(self):
        """Text
  outdented"""
    @property
    def p(self): return 1
    @p.setter
    def p(self, v): ...
    class B:
        async def n(self): pass
if True:
    def late(): pass
'''
    found = dict(python_functions(source))
    assert list(found) == ["plain", "A.m", "A.p", "A.p#2", "A.B.n", "late"]
    assert found["A.m"] == '@functools.cache\ndef m(self):\n    """Text\n  outdented"""'
    assert found["plain"].endswith("    return x")
    assert found["late"] == "def late(): pass"


def test_function_text_survives_form_feeds_and_carriage_returns() -> None:
    assert python_functions("x = 1\x0c\r\n\r\ndef f():\r\n    return '\x0c'\r\n") == [
        ("f", "def f():\n    return '\x0c'")
    ]


@given(st.lists(st.sampled_from(["def f():\n    pass\n", "class C:\n    def g(self):\n        return 1\n", "x = 1\n"])))
def test_every_function_text_is_valid_python(parts: list[str]) -> None:
    import ast

    for _, text in python_functions("".join(parts)):
        assert isinstance(ast.parse(text).body[0], ast.FunctionDef)


def read(tmp_path: Path, name: str, raw: bytes, columns: Columns | None = None, **source: object) -> list[Any]:
    (tmp_path / name).write_bytes(raw)
    return read_file(tmp_path / name, columns, **source)


def read_file(file: Path, columns: Columns | None = None, **source: object) -> list[Any]:
    made = Source.model_validate({"files": str(file), **source})
    return list(read_rows(file, file.name, made, columns or Columns()))


YG = Columns(label="y", group="g")


def test_undecodable_text_is_rejected_with_its_reason(tmp_path: Path) -> None:
    assert read(tmp_path, "a.txt", b"caf\xe9") == [Rejected("a.txt", None, "not utf-8 text (byte 3)")]
    assert read(tmp_path, "b.txt", b"\xef\xbb\xbfyes\r\n") == [Row("b.txt", "yes\n", "b.txt")]


@pytest.mark.parametrize(
    ("format", "raw", "texts"),
    [
        ("text", b"caf\xe9", ["caf\u00e9"]),
        ("text", "caf\u00e9".encode(), ["caf\u00e9"]),
        ("lines", "caf\u00e9\n".encode() + b"\x93so\x94\n", ["caf\u00e9", "\u201cso\u201d"]),
        ("jsonl", b'{"text": "caf\xe9"}\n', ["caf\u00e9"]),
        ("csv", b"text\ncaf\xe9\n\x81\n", ["caf\u00e9", None]),
        ("text", b"\x81", [None]),
    ],
)
def test_what_is_no_utf8_may_be_in_another_encoding(
    tmp_path: Path, format: str, raw: bytes, texts: list[str | None]
) -> None:
    """0x81 is nothing in windows-1252."""
    found = read(tmp_path, "a", raw, format=format, fallback_encoding="windows-1252")
    assert [row.text if isinstance(row, Row) else None for row in found] == texts


def test_python_files_say_their_own_encoding(tmp_path: Path) -> None:
    (row,) = read(tmp_path, "a.py", "# -*- coding: latin-1 -*-\ns = 'é'\n".encode("latin-1"))
    assert isinstance(row, Row) and "é" in row.text
    (bad,) = read(tmp_path, "b.py", b"# coding: no-such\n")
    assert isinstance(bad, Rejected) and "unknown encoding" in bad.reason
    (bad,) = read(tmp_path, "c.py", b"# coding: rot13\n")
    assert isinstance(bad, Rejected) and "not a text encoding" in bad.reason


def test_files_of_functions_with_wrong_syntax_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("def f(:\n")
    (tmp_path / "b.py").write_bytes(b"x = 1\0")
    functions = Source.model_validate({"python_functions": str(tmp_path)})
    found = [row for name in ("a.py", "b.py") for row in read_rows(tmp_path / name, name, functions, Columns())]
    assert [(type(r), r.path) for r in found if isinstance(r, Rejected)] == [(Rejected, "a.py"), (Rejected, "b.py")]
    assert isinstance(found[0], Rejected) and found[0].line == 1 and "not valid Python" in found[0].reason


def test_jsonl_rows_keep_their_names_when_lines_are_added(tmp_path: Path) -> None:
    line = b'{"text": "one", "y": "pos", "g": 7}\n'
    (first,) = read(tmp_path, "a.jsonl", line, YG, format="jsonl")
    assert isinstance(first, Row)
    assert (first.text, first.label, first.group) == ("one", "pos", "7")
    later = read(tmp_path, "a.jsonl", b'{"text": "zero"}\n' + line, YG, format="jsonl")
    assert first in later
    named = read(tmp_path, "a.jsonl", b'{"text": "one", "n": "x"}\n', format="jsonl", id_column="n")
    assert named[0].id == "a.jsonl#x"


def test_bad_jsonl_lines_are_rejected_by_line(tmp_path: Path) -> None:
    raw = b'{"text": "ok"}\n{bad\n\n[1]\n{"text": 3}\n{"text": "\xff"}\n{"text": "\\ud800"}\n'
    found = read(tmp_path, "a.jsonl", raw, format="jsonl")
    assert [r.line for r in found if isinstance(r, Rejected)] == [2, 4, 5, 6, 7]
    assert "columns: text" in found[3].reason


def test_csv(tmp_path: Path) -> None:
    found = read(tmp_path, "a.csv", b'text,y\n"a, b",pos\nlonely\nc,neg\n', Columns(label="y"), format="csv")
    assert [(r.text, r.label) for r in found if isinstance(r, Row)] == [("a, b", "pos"), ("c", "neg")]
    assert [r.line for r in found if isinstance(r, Rejected)] == [3]
    assert read(tmp_path, "b.csv", b"", format="csv") == []
    (latin, good) = read(tmp_path, "c.csv", b"text\ncaf\xe9\nok\n", format="csv")
    assert isinstance(latin, Rejected) and good.text == "ok", "one row in another encoding costs one row"


def test_csv_with_another_delimiter_or_columns_says_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"(?s)no column 'text'.*the delimiter looks like ';': set `delimiter`"):
        read(tmp_path, "a.csv", b"text;y\na;b\n", format="csv")
    assert read(tmp_path, "a.csv", b"text;y\na;b\n", format="csv", delimiter=";")[0].text == "a"
    with pytest.raises(StageError, match=r"(?s)sources: b.csv: no column 'text'.*Did you mean 'texts'\?"):
        read(tmp_path, "b.csv", b"texts,y\na,b\n", format="csv")
    with pytest.raises(StageError, match="column 'text' is there twice"):
        read(tmp_path, "c.csv", b"text,text\na,b\n", format="csv")


def test_columns_that_nobody_asked_for_are_not_looked_at(tmp_path: Path) -> None:
    """As spreadsheets save them: nameless columns at the end; and two notes of one name."""
    found = read(tmp_path, "a.csv", b"text,y,note,note,,\na,pos,1,2,,\nb,neg,,,,\n", Columns(label="y"), format="csv")
    assert [(row.text, row.label) for row in found] == [("a", "pos"), ("b", "neg")]
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array([1]), pa.array([2])], names=["text", "note", "note"])
    pq.write_table(table, tmp_path / "b.parquet")
    assert [row.text for row in read_file(tmp_path / "b.parquet", format="parquet")] == ["a"]


def test_nanoseconds_are_read_whether_or_not_pandas_is_there(tmp_path: Path) -> None:
    """pyarrow gives them as pandas' timestamps, or raises where there is no pandas: a plain installation has none."""
    fine = [1_700_000_000_123_456_789, None, -1, 1_700_000_000_000_000_000]
    columns = {
        "fine": pa.array(fine, pa.timestamp("ns")),
        "zoned": pa.array(fine, pa.timestamp("ns", "Europe/Berlin")),
        "coarse": pa.array([n and n // 1000 * 1000 for n in fine], pa.timestamp("ns")),
    }
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    made = Source(files="a.parquet", format="parquet", text_column=None, columns={"fine": "string"})
    rows = [row for _, row in records(tmp_path / "a.parquet", "a.parquet", made, list(columns), print)]
    assert [row["fine"] for row in rows] == [
        "2023-11-14T22:13:20.123456789", None, "1969-12-31T23:59:59.999999999", "2023-11-14T22:13:20",
    ]  # fmt: skip
    assert rows[0]["zoned"] == "2023-11-14T23:13:20.123456789+01:00"
    assert [type(row["coarse"]) for row in rows] == [datetime, type(None), datetime, datetime]


def test_parquet_and_arrow(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.feather as feather
    import pyarrow.parquet as pq

    table = pa.table({"text": ["x", None], "y": [1, 0], "more": [2, 3]})
    pq.write_table(table, tmp_path / "t.parquet")
    feather.write_feather(table, tmp_path / "t.arrow")
    with pa.ipc.new_stream(tmp_path / "s.arrow", table.schema) as stream:
        stream.write_table(table)
    for name, kind in (("t.parquet", "parquet"), ("t.arrow", "arrow"), ("s.arrow", "arrow")):
        good, bad = read_file(tmp_path / name, Columns(label="y"), format=kind)
        assert (good.text, good.label) == ("x", "1") and isinstance(bad, Rejected)
        with pytest.raises(StageError, match="no column 'body'"):
            read_file(tmp_path / name, format=kind, text_column="body")
    whole = (tmp_path / "t.parquet").read_bytes()
    for broken in (whole[:-20], whole[:40], b"PAR1 nonsense", b""):
        with pytest.raises(StageError, match=r"sources: u\.parquet: not a Parquet file"):
            read(tmp_path, "u.parquet", broken, format="parquet")


def test_compressed_files_and_what_is_left_of_them(tmp_path: Path) -> None:
    import bz2
    import gzip

    import pyarrow as pa

    lines = b"".join(b'{"text": "row %d"}\n' % i for i in range(5000))
    packed = {"gz": gzip.compress(lines), "bz2": bz2.compress(lines)}
    packed["zst"] = pa.compress(lines, codec="zstd", asbytes=True)
    for suffix, raw in packed.items():
        assert len(read(tmp_path, f"a.jsonl.{suffix}", raw, format="jsonl")) == 5000
        for name, left in (("b", raw[: len(raw) // 2]), ("c", b"")):
            with pytest.raises(StageError, match=rf"sources: {name}.jsonl.{suffix}: the file is damaged"):
                read(tmp_path, f"{name}.jsonl.{suffix}", left, format="jsonl")


def test_a_table_that_is_damaged_in_the_middle_says_how_far_it_was_read(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": [f"row {i}" for i in range(4000)]}), tmp_path / "a.parquet", row_group_size=1000)
    raw = bytearray((tmp_path / "a.parquet").read_bytes())
    column = pq.ParquetFile(tmp_path / "a.parquet").metadata.row_group(2).column(0)
    begin = column.dictionary_page_offset or column.data_page_offset
    raw[begin : begin + 200] = b"\xff" * 200
    with pytest.raises(StageError, match=r"sources: b\.parquet: the file is damaged after row 1,024: "):
        read(tmp_path, "b.parquet", bytes(raw), format="parquet")


def test_lines_are_examples(tmp_path: Path) -> None:
    found = read(tmp_path, "a.txt", b"one\n\ntwo\r\nthr\0ee\nfour", format="lines")
    assert [row.text for row in found if isinstance(row, Row)] == ["one", "two", "four"]
    bad = [(r.line, r.reason) for r in found if isinstance(r, Rejected)]
    assert bad == [(4, "it holds NUL bytes, so it is no text")]


@pytest.mark.parametrize("format", ["text", "lines", "jsonl", "csv"])
def test_an_endless_line_is_set_aside_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    import tracemalloc

    monkeypatch.setattr("tasks.data.reading.streams.LONGEST_ROW", 1 << 20)
    good = {"text": b"", "lines": b"ok", "jsonl": b'{"text": "ok"}', "csv": b"ok"}[format]
    with (tmp_path / "a").open("wb") as stream:
        stream.write(b"text\n" if format == "csv" else b"")
        for _ in range(40):
            stream.write(b"x" * (1 << 20))
        stream.write(b"\n" + good + b"\n")
    tracemalloc.start()
    found = read_file(tmp_path / "a", format=format)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 << 20, "40 MiB went by"
    assert [r.reason for r in found if isinstance(r, Rejected)] == ["longer than 1 MiB"]
    assert [r.text for r in found if isinstance(r, Row)] == ([] if format == "text" else ["ok"])


def test_texts_are_made_of_columns(tmp_path: Path) -> None:
    raw = b'{"q": "Why?", "a": "So.", "n": 3}\n{"q": "And?"}\n'
    good, bad = read(tmp_path, "a.jsonl", raw, format="jsonl", template="Q{n}: {q}\nA: {a} {{}}")
    assert good.text == "Q3: Why?\nA: So. {}"
    assert bad.reason == "column 'n' holds no text (columns: q)"
    for template in ("{q.__class__}", "{q[0]}", "{0}", "no column", "{}"):
        with pytest.raises(ValidationError, match="names columns as"):
            Source.model_validate({"files": "x", "format": "jsonl", "template": template})


def test_chats_are_rendered(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"m": chat}, {"m": []}, {"m": [{"role": "boss", "content": "x"}]}, {"m": [{"role": "user"}]}]
    raw = "".join(json.dumps(row) + "\n" for row in rows).encode()
    found = read(tmp_path, "a.jsonl", raw, format="jsonl", messages_column="m")
    assert found[0].text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
    assert [r.reason for r in found[1:]] == [
        "column 'm' holds no list of messages",
        "message 1 has none of the roles system, user, assistant, tool",
        "message 1 has no content",
    ]
    own = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    assert read(tmp_path, "a.jsonl", raw, format="jsonl", messages_column="m", chat_template=own)[0].text == "Hi|Hello|"
    evil = "{{ messages.__class__.__mro__ }}"
    refused = read(tmp_path, "a.jsonl", raw, format="jsonl", messages_column="m", chat_template=evil)
    assert isinstance(refused[0], Rejected) and "refuses" in refused[0].reason


def test_urls_are_listed_and_read(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/raw/a.jsonl": b'{"text": "a"}\n', "/raw/b/c.jsonl": b'{"text": "c"}\n', "/raw/d.txt": b"d"})
    found = find_files([Source.model_validate({"files": "memory://raw/**/*.jsonl", "format": "jsonl"})])
    assert [f.path for f in found] == ["a.jsonl", "b/c.jsonl"]
    assert [f.sha256 for f in hashed(found)] == [hashlib.sha256(b'{"text": "%c"}\n' % c).hexdigest() for c in b"ac"]
    with local_copy(found[1].place.location, tmp_path) as copy:
        assert copy.name == "c.jsonl" and copy.read_bytes() == b'{"text": "c"}\n'
    assert not copy.exists()


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It must be older than the clock's resolution; and whoever doubts it can have all of them read."""
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))
    read: list[str] = []
    monkeypatch.setattr("infra.source_files._digest", lambda file: read.append(file.location) or "0" * 64)
    old, new = tmp_path / "old.txt", tmp_path / "new.txt"
    old.write_text("x")
    new.write_text("y")
    monkeypatch.setattr("infra.source_files.settled", lambda file: file.location.endswith("old.txt"))
    for _ in range(2):
        digests([local(old), local(new)])
    assert [Path(name).name for name in read] == ["old.txt", "new.txt", "new.txt"]
    os.utime(old, ns=(1, 1))
    digests([local(old)])
    monkeypatch.setenv("FORGELINE_VERIFY_SOURCES", "1")
    digests([local(old)])
    assert [Path(name).name for name in read[3:]] == ["old.txt", "old.txt"]


def test_hub_datasets_are_named_by_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit says all about the content, so a plan needs no network; the files come from the local cache."""
    commit = "0123456789" * 4
    for wrong in ("hf://datasets/org/name/data.csv", "hf://datasets/org/name@main/data.csv"):
        with pytest.raises(ValidationError, match="a branch or tag could move"):
            Source.model_validate({"files": wrong})
    snapshot = tmp_path / "hub/datasets--org--name/snapshots" / commit
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "data/a.csv").write_text("text\nhello\n")
    source = Source.model_validate({"files": f"hf://datasets/org/name@{commit}/data/*.csv", "format": "csv"})
    assert find_files([source]) == [] and len(hub_digests([source])) == 1
    code = (
        "import sys; from tasks.data.reading.found_files import *; "
        f"print([f.path for f in hub_files(Source(files={source.files!r}, format='csv'), 'here')])"
    )
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "hub")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert done.stdout.strip() == "['data/a.csv']", done.stderr
    offline["HF_HUB_CACHE"] = str(tmp_path / "empty")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=offline)
    assert "StageError: here: cannot get org/name at 012345678901" in done.stderr


def test_listing_is_quick_enough_to_plan_with(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"{i}.txt").write_text("x")
    start = time.process_time()
    find_files([Source.model_validate({"files": f"{tmp_path}/**/*.txt", "exclude": ["**/test/**"]})])
    assert time.process_time() - start < 0.2

"""Which files a dataset reads, how they are named, and what is said when there are none."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from infra.errors import StageError
from tasks.data.file_patterns import compiled, split_root, walk
from tasks.data.functions import python_functions
from tasks.data.reading import Columns, Rejected, Row, read_rows
from tasks.data.sources import Source, find_files, hashed
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
    assert walk(tree, "**/*.py", ["pkg/test/**", "pkg/gone/**"]) == ["a.py", "pkg/b.py", "pkg/deep/c.py"]


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
    with pytest.raises(StageError, match="not a local path"):
        paths(files="s3://bucket/*.txt")


def test_listed_file_that_vanishes_is_an_error_not_bad_data(tree: Path) -> None:
    files = find_files([Source.model_validate({"files": f"{tree}/*.py"})])
    (tree / "a.py").unlink()
    with pytest.raises(StageError, match=r"sources: a.py: cannot read"):
        hashed(files)
    with pytest.raises(StageError, match=r"sources: a.py: cannot read"):
        list(read_rows(files, Columns()))


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


def read(tmp_path: Path, name: str, raw: bytes, **source: object) -> list[Row | Rejected]:
    (tmp_path / name).write_bytes(raw)
    files = find_files([Source.model_validate({"files": f"{tmp_path}/{name}", **source})])
    return list(read_rows(files, Columns(label="y", group="g")))


def test_undecodable_text_is_rejected_with_its_reason(tmp_path: Path) -> None:
    assert read(tmp_path, "a.txt", b"caf\xe9") == [Rejected("a.txt", None, "not utf-8 text (byte 3)")]
    assert read(tmp_path, "b.txt", b"\xef\xbb\xbfyes\r\n") == [Row("b.txt", "yes\n", "b.txt")]


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
    files = find_files([Source.model_validate({"python_functions": str(tmp_path)})])
    found = list(read_rows(files, Columns()))
    assert [(type(r), r.path) for r in found if isinstance(r, Rejected)] == [(Rejected, "a.py"), (Rejected, "b.py")]
    assert isinstance(found[0], Rejected) and found[0].line == 1 and "not valid Python" in found[0].reason


def test_jsonl_rows_keep_their_names_when_lines_are_added(tmp_path: Path) -> None:
    line = b'{"text": "one", "y": "pos", "g": 7}\n'
    (first,) = read(tmp_path, "a.jsonl", line, format="jsonl")
    assert isinstance(first, Row)
    assert (first.text, first.label, first.group) == ("one", "pos", "7")
    later = read(tmp_path, "a.jsonl", b'{"text": "zero"}\n' + line, format="jsonl")
    assert first in later
    named = read(tmp_path, "a.jsonl", b'{"text": "one", "n": "x"}\n', format="jsonl", id_column="n")
    assert named[0].id == "a.jsonl#x"  # type: ignore[union-attr]


def test_bad_jsonl_lines_are_rejected_by_line(tmp_path: Path) -> None:
    raw = b'{"text": "ok"}\n{bad\n\n[1]\n{"text": 3}\n{"text": "\xff"}\n{"text": "\\ud800"}\n'
    found = read(tmp_path, "a.jsonl", raw, format="jsonl")
    assert [r.line for r in found if isinstance(r, Rejected)] == [2, 4, 5, 6, 7]
    assert "columns: text" in found[3].reason  # type: ignore[union-attr]


def test_csv_and_parquet(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = read(tmp_path, "a.csv", b'text,y\n"a, b",pos\nlonely\nc,neg\n', format="csv")
    assert [(r.text, r.label) for r in found if isinstance(r, Row)] == [("a, b", "pos"), ("c", "neg")]
    assert [r.line for r in found if isinstance(r, Rejected)] == [3]
    pq.write_table(pa.table({"text": ["x", None], "y": [1, 0]}), tmp_path / "t.parquet")
    files = find_files([Source.model_validate({"files": f"{tmp_path}/t.parquet", "format": "parquet"})])
    rows = list(read_rows(files, Columns(label="y")))
    assert isinstance(rows[0], Row) and (rows[0].text, rows[0].label) == ("x", "1")
    assert isinstance(rows[1], Rejected)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(StageError, match="not a Parquet file"):
        list(read_rows(files, Columns()))


def test_listing_is_quick_enough_to_plan_with(tmp_path: Path) -> None:
    for i in range(500):
        (tmp_path / f"{i}.txt").write_text("x")
    start = time.process_time()
    find_files([Source.model_validate({"files": f"{tmp_path}/**/*.txt", "exclude": ["**/test/**"]})])
    assert time.process_time() - start < 0.2

"""Bad input through the command line: the exit code, a message that says what, where and what to do, and no debris.

What a message says about each single fault of a file is held by `test_pipeline_file.py`; here it is the commands.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.cli import main
from infra.open_store import open_store

GOOD = """\
name: demo
stages:
  corpus:
    dataset: {sources: [{files: "texts/*.txt", format: text}]}
  words:
    tokenizer: {data: corpus, vocab_size: 300}
  tokens:
    pack: {data: corpus, tokenizer: words, context: 16}
  base:
    pretrain:
      data: tokens
      objective: causal_lm
      model: {type: llama, hidden_size: 16}
      max_steps: 4
      global_batch_size: 8
"""
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
CIRCLE = GOOD.replace("  base:\n", "  a:\n    finetune: {model: b, data: corpus, objective: causal_lm, epochs: 1}\n"
    "  b:\n    finetune: {model: a, data: corpus, objective: causal_lm, epochs: 1}\n  base:\n")  # fmt: skip

Forgeline = Callable[..., tuple[int, str]]


@pytest.fixture
def forgeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Forgeline:
    """Runs a command in an empty folder that holds `p.yaml`; returns (exit code, stderr). stdout must stay empty."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORGELINE_HOME", "FORGELINE_STORE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, text: str | bytes = GOOD) -> tuple[int, str]:
        Path("p.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        code = main(arguments)
        said = capsys.readouterr()
        assert said.out == ""
        assert "Traceback" not in said.err
        return code, said.err

    return call


def left_behind(folder: Path) -> list[str]:
    """Every file Forgeline made below `folder`."""
    known = {"p.yaml", "texts/a.txt", "in-the-way"}
    return sorted({str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - known)


# --- the pipeline file ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.yaml:1: the file is empty; a pipeline needs at least `name` and `stages`"),
        (GOOD + "name: twice\n", "p.yaml:16: name: duplicate key; it already stands in line 1"),
        (BOMB, "expand to more than"),
        ("- name: demo\n", "p.yaml:1: a pipeline is a mapping with `name` and `stages`"),
        ("name: demo\nstages: {}\n", "p.yaml:2: stages: expected at least 1 item\n"),
        (GOOD.replace("max_steps", "max_stps"), "p.yaml:14: stages.base.pretrain.max_stps: unknown field; did you mean max_steps?"),
        (GOOD.replace("max_steps: 4", "max_steps: four"), "stages.base.pretrain.max_steps: expected a valid integer"),
        (GOOD.replace("  tokens:\n    pack", "  tokens:\n    pak"), "p.yaml:8: stages.tokens.pak: unknown stage kind; did you mean pack?"),
        (GOOD.replace("data: tokens", "data: token"), "no stage named 'token'; did you mean tokens?"),
        (GOOD.replace("data: tokens", "data: words"), "'words' makes a tokenizer, but a tokens is needed here"),
        (CIRCLE, "need each other in a circle"),
        (GOOD + "execution: {base: {processes: 3}}\n", "stages.base.pretrain.global_batch_size"),
        (GOOD + "store: ${env:FORGELINE_NO_SUCH}\n", "p.yaml:16: store: environment variable FORGELINE_NO_SUCH is not set"),
        (b"name: \xff\n", "not UTF-8 text (byte 6); save it as UTF-8"),
    ],
    ids=["empty", "duplicate key", "anchor bomb", "list", "no stages", "unknown field", "wrong type", "unknown kind",
         "unknown stage", "wrong kind of input", "cycle", "batch", "environment", "not text"],
)  # fmt: skip
def test_a_wrong_file_stops_every_command_before_it_starts(
    forgeline: Forgeline, tmp_path: Path, command: str, text: str | bytes, said: str
) -> None:
    code, error = forgeline(command, "p.yaml", text=text)
    assert code == 2
    assert said in error
    assert error.startswith("forgeline: p.yaml")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.yaml"], "nothing was made, not even .forgeline"


def test_a_missing_variable_is_one_fault(forgeline: Forgeline) -> None:
    code, error = forgeline("validate", "p.yaml", text=GOOD + "store: ${env:NO_SUCH_1}\nexecution: {default: {processes: '${env:NO_SUCH_2}'}}\n")  # fmt: skip
    assert code == 2
    assert [line.partition("environment")[0] for line in error.splitlines()] == [
        "forgeline: p.yaml:16: store: ",
        "p.yaml:17: execution.default.processes: ",
    ]
    assert "${env:NO_SUCH_1:-default}" in error


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.bsae.learning_rate=1", "stages.bsae: no such stage; did you mean base?"),
        ("stages.base.learning_rte=1", "stages.base.pretrain.learning_rte: unknown field; did you mean learning_rate?"),
        ("execution.default.processes=0", "execution.default.processes: expected greater than or equal to 1 (got 0)"),
        ("name", "expected PATH=VALUE, such as stages.base.learning_rate=1e-4"),
        ("name.first=x", "is a single value and has no fields to set"),
    ],
)
def test_a_wrong_override_is_quoted(forgeline: Forgeline, tmp_path: Path, override: str, said: str) -> None:
    code, error = forgeline("run", "p.yaml", "--set", override)
    assert code == 2
    assert error.startswith(f"forgeline: --set {override}: ")
    assert said in error
    assert left_behind(tmp_path) == []


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("folder", "said", "advice"),
    [
        (None, "cannot read {tmp}/texts: No such file or directory", "relative paths start at the pipeline file's folder"),
        ("texts", "no file matches *.txt under {tmp}/texts", "`**/` matches any depth of folders."),
    ],
)  # fmt: skip
def test_a_source_without_files_names_its_stage(
    forgeline: Forgeline, tmp_path: Path, command: str, folder: str | None, said: str, advice: str
) -> None:
    if folder:
        (tmp_path / folder).mkdir()
    code, error = forgeline(command, "p.yaml")
    assert code == 3
    assert error.startswith(f"forgeline: stages.corpus.dataset.sources[0].files: {said.format(tmp=tmp_path)}")
    assert advice in error
    assert left_behind(tmp_path) == []


def test_an_unknown_ref_as_an_input_names_the_field(forgeline: Forgeline, tmp_path: Path) -> None:
    text = GOOD.replace("tokenizer: words", "tokenizer: 'ref:demo/words/latest'")
    code, error = forgeline("run", "p.yaml", text=text)
    assert code == 2
    assert "stages.tokens.tokenizer: no ref named 'demo/words/latest'" in error
    assert "run a pipeline first" in error
    assert left_behind(tmp_path) == []


# --- stores -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize(
    ("store", "said", "advice"),
    [
        ("ftp://host/x", "ftp://host/x: unknown store scheme 'ftp'", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "not a bucket", "AWS_SECRET_ACCESS_KEY"),
        ("file://relative", "file://relative: not a folder", "file:///absolute/folder"),
        ("${HOME}/store", "${HOME}/store: nothing is put in for ${HOME}", "${env:HOME}"),
        ("data/$USER", "nothing is put in for $USER", "${env:USER}"),
        ("~nobody-of-that-name/x", "nobody of that name has a home folder here", ""),
    ],
)
def test_a_name_that_is_no_store_is_a_usage_error(
    forgeline: Forgeline, tmp_path: Path, command: str, store: str, said: str, advice: str
) -> None:
    code, error = forgeline(command, "p.yaml", "--store", store)
    assert code == 2
    assert said in error
    assert advice in error
    assert "secret@" not in error
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_variable_of_a_shell_in_the_file_is_not_a_folder(forgeline: Forgeline, tmp_path: Path, command: str) -> None:
    code, error = forgeline(command, "p.yaml", text=GOOD + "store: ${HOME}/store\n")
    assert code == 2
    assert error.startswith("forgeline: p.yaml:16: store: nothing is put in for ${HOME}; write ${env:HOME}")
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize("store", ["in-the-way", "in-the-way/store"])
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_store_where_a_file_is_cannot_be_used(forgeline: Forgeline, tmp_path: Path, command: str, store: str) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("text")
    (tmp_path / "in-the-way").write_text("")
    code, error = forgeline(command, "p.yaml", "--store", store)
    assert code == 3
    assert error.startswith(f"forgeline: {tmp_path}/in-the-way")
    assert "older for the store" in error
    assert (tmp_path / "in-the-way").read_text() == ""
    assert left_behind(tmp_path) == []


def test_an_unreachable_s3_server_is_named_and_its_secret_is_not(
    forgeline: Forgeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "an-access-key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-key")
    code, error = forgeline("run", "p.yaml", "--store", "s3://bucket/prefix")
    assert code == 3
    assert error.startswith("forgeline: s3://bucket/prefix: the store did not answer")
    assert "http://127.0.0.1:1" in error
    assert "Check AWS_ENDPOINT_URL" in error
    assert "a-secret-key" not in error
    assert left_behind(tmp_path) == []


# --- names on the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "demo/base/latest"], "no ref named 'demo/base/latest'\n  This store holds no refs yet"),
        (["show", "../../etc/passwd"], "'../../etc/passwd' cannot be the name of a ref\n  Use letters"),
        (["report", "20260101-000000-abcd"], "no run '20260101-000000-abcd' in this store\n  Nothing ran here yet."),
        (["status", "20260101-000000-abcd"], "no run '20260101-000000-abcd' in this store\n  Nothing ran here yet."),
        (["status"], "Nothing ran here yet."),
        (["run", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["validate", "."], "cannot be read: Is a directory"),
    ],
    ids=" ".join,
)
def test_unknown_names(forgeline: Forgeline, tmp_path: Path, arguments: list[str], said: str) -> None:
    code, error = forgeline(*arguments)
    assert code == 2
    assert said in error
    assert left_behind(tmp_path) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "unknown command 'frobnicate'"),
        (["run"], "the following arguments are required: file"),
        (["up", "--port", "99999"], "'99999' is not a port: use a number from 1 to 65535"),
        (["plan", "p.yaml", "--jsn"], "unknown option '--jsn'; did you mean --json?"),
    ],
    ids=" ".join,
)
def test_wrong_usage_exits_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_installed_command_hands_the_exit_code_on(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    code = "import sys; from flows.cli import main; sys.exit(main(['validate', 'p.yaml']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the file is empty" in done.stderr


@pytest.mark.parametrize("home", ["a-file", "a-file/below"])
@pytest.mark.parametrize("command", [["run", "p.yaml"], ["up"], ["prepare", "p.yaml", "corpus"]], ids=" ".join)
def test_a_home_that_cannot_be_written_is_told_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: list[str], home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORGELINE_HOME", str(tmp_path / home))
    (tmp_path / "a-file").write_text("")
    (tmp_path / "a.txt").write_text("a text\n")
    (tmp_path / "p.yaml").write_text("name: p\nstages: {corpus: {dataset: {sources: [{files: a.txt}]}}}\nstore: s\n")
    assert main(command) == 2
    shown = capsys.readouterr().err
    assert f"forgeline: {tmp_path / home} (FORGELINE_HOME): cannot be written" in shown
    assert "set FORGELINE_HOME to another folder" in shown
    assert list((tmp_path / "s").rglob("run.json")) == []


def test_a_page_that_cannot_be_written_is_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(str(tmp_path / "s"))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "f").write_text("x")
    made = store.commit(
        kind="dataset", type="dataset", key="d" * 64, attempt="a", payload_dir=tmp_path / "made", identity={}
    )
    (tmp_path / "a-file").write_text("")
    assert main(["lineage", f"dataset/{made.key}", "--html", "a-file/page.html", "--store", str(tmp_path / "s")]) == 2
    assert capsys.readouterr().err.startswith("forgeline: a-file")

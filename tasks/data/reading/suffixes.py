"""What a file's suffix says about its format, where it contradicts what the source says.

A `*.jsonl` that is read as text is one example a file, without a word; so the suffix is asked before anything is read.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from urllib.parse import urlsplit

from tasks.data.reading.file_patterns import MAGIC
from tasks.data.reading.streams import COMPRESSED

FORMATS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "jsonl"),
    **dict.fromkeys((".csv", ".tsv"), "csv"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    **dict.fromkeys((".txt", ".md", ".rst", ".html", ".htm", ".xml", ".log", ".py"), "text"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".mp3", ".aiff", ".aif"), "audio"),
}
BINARY = ("parquet", "arrow", "image", "audio")
METADATA = ("metadata.csv", "metadata.jsonl")
"""Beside images and audio: further columns of them, by `file_name`."""
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".7z", ".rar", ".xz", ".lzma", ".lz4", ".br", ".z"}
DOCUMENTS = {".xlsx", ".xls", ".ods", ".docx", ".doc", ".odt", ".pdf", ".pptx"}
OTHERS = {".avro", ".orc", ".db", ".sqlite", ".sqlite3", ".h5", ".hdf5", ".npy", ".npz", ".pkl", ".pickle"}


def contradiction(name: str, format: str, *, stated: bool, delimiter_stated: bool) -> str:
    """Why files of this name (or pattern, or URL) are not of the format, and what to do; empty where nothing says so.

    stated: the format was written down, not left at its default. Who writes `text` or `lines` may read a csv so.
    """
    path = PurePosixPath(urlsplit(name).path if name.startswith(("http://", "https://")) else name)
    suffix = path.suffix.lower()
    packed = suffix in COMPRESSED
    if packed:
        suffix = PurePosixPath(path.stem).suffix.lower()
    if MAGIC.search(suffix) or format == "python_functions":
        return ""
    if suffix in ARCHIVES:
        return f"{suffix} is not read: unpack it; single files may be compressed ({', '.join(COMPRESSED)})"
    if suffix in DOCUMENTS or suffix in OTHERS:
        return f"{suffix} is not read: save it as csv, jsonl or Parquet"
    known = FORMATS.get(suffix)
    if packed and format in BINARY:
        return f"{format} files are compressed within: unpack {path.suffix}"
    if format in ("image", "audio") and path.name in METADATA:
        return ""
    if known is None or known == format:
        if suffix == ".tsv" and not delimiter_stated and format == "csv":
            return r'.tsv has tabs between its fields: write delimiter: "\t"'
        return ""
    as_text = format in ("text", "lines")
    if as_text and not stated:
        other = "" if known in BINARY else ", or `format: text` if a whole file is one example"
        return f"{suffix} is read as text, a file an example, by default: write `format: {known}`{other}"
    if (as_text and known not in BINARY) or (known == "text" and format not in BINARY):
        return ""
    return f"{suffix} contradicts `format: {format}`: write `format: {known}`, or rename what is called so"

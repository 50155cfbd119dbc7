"""Images, sounds and lists in a dataset: checked when they are read, kept in Arrow files, found again byte by byte."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import wave
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from infra.errors import StageError
from infra.execution import Execution
from infra.open_store import open_store
from tasks.data.dataset.layout import split_files
from tasks.data.dataset.new_rows import new_rows
from tasks.data.dataset.rows import open_split
from tasks.data.reading import media
from tasks.data.reading.typed_columns import values_reader
from tasks.plan import watching
from tasks.release.evidence import Evidence
from tasks.release.report.views.data import data_views
from tasks.stage import InputArtifact
from tasks.stages import compare, dataset


def png(shade: int, size: tuple[int, int] = (4, 3)) -> bytes:
    """A grey PNG of `size` (width, height) in one shade."""
    out = io.BytesIO()
    Image.new("L", size, shade).save(out, "PNG")
    return out.getvalue()


def wav(level: int, samples: int = 80) -> bytes:
    """A WAV of 8,000 samples a second, 16 bits, all of one level."""
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(level.to_bytes(2, "little", signed=True) * samples)
    return out.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))


def made(jobs: ModuleType, folder: Path, source: dict[str, Any], **more: Any) -> Any:
    inputs = more.pop("inputs", {})
    params = {"sources": [source], "split": {"by": "row", "validation": 0.0, "test": 0.0}, **more}
    job = jobs.make_job(folder, dataset.Params.model_validate(params), inputs, store=folder.parent / "store")
    job.version = dataset.STAGE.version
    job.metrics = dataset.run(job)
    jobs.collect(job)
    return job


def opened(job: Any, columns: list[str]) -> Any:
    return open_split(InputArtifact("goods", job.output, None), "train", columns)  # type: ignore[arg-type]


def photos(folder: Path, sizes: tuple[tuple[int, int], ...] = ((4, 3),)) -> Path:
    """A folder of ten images in two folders that are their classes."""
    for i in range(10):
        file = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(20 * i, sizes[i % len(sizes)]))
    return folder


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("image", [(png(1), png(1)), ({"bytes": png(2), "path": None}, png(2)), (base64.b64encode(png(3)).decode(), png(3))],
         [b"no image", png(1)[:40], {"bytes": None, "path": "a.png"}, wav(0), 3]),
        ("audio", [(wav(5), wav(5)), ({"bytes": wav(6), "path": "a.wav"}, wav(6))], [b"RIFF", png(1), wav(0)[:20], wav(0, 0)]),
        ("list<int32>", [((1, "2"), [1, 2]), ("[3]", [3]), ([], [])], [[1, None], [1 << 31], [0.5], 3, b"ab", "word", {"a": 1}]),
        ("list<float32>", [([1, 0.1], [1.0, 0.10000000149011612])], [["x"], [[1.0]]]),
        ("list<string>", [(["a", 3], ["a", "3"])], [[b"a"]]),
    ],
)  # fmt: skip
def test_what_converts_and_what_does_not(kind: Any, good: list[tuple[Any, Any]], bad: list[Any]) -> None:
    read = values_reader({"x": kind}, empty_is_missing=False)
    assert [read({"x": value}) for value, _ in good] == [(converted,) for _, converted in good]
    for value in bad:
        assert str(read({"x": value})).startswith(f"column 'x' holds no {kind}: "), value


def test_what_reads_images_may_be_missing_and_validate_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(media.importlib.util, "find_spec", lambda name: None)
    params = dataset.Params.model_validate({"sources": [{"files": "*.png", "format": "image"}]})
    assert dataset.STAGE.check is not None
    (fault,) = dataset.STAGE.check(params, Execution())
    assert fault.path == ("sources", 0, "columns") and "pip install 'forgeline[vision]'" in fault.message
    plain = dataset.Params.model_validate({"sources": [{"files": "*.txt"}]})
    assert dataset.STAGE.check(plain, Execution()) == []


# --- the way through --------------------------------------------------------------------------------------------------


def test_rows_of_images_sounds_and_lists_come_back_as_they_were(jobs: ModuleType, tmp_path: Path) -> None:
    rows = [{"photo": {"bytes": png(i), "path": None}, "sound": wav(i), "codes": [i, -i], "n": i} for i in range(30)]
    rows.append({"photo": None, "sound": None, "codes": None, "n": 30})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "goods.parquet")
    columns = {"photo": "image", "sound": "audio", "codes": "list<int32>", "n": "int32"}
    source = {"files": str(tmp_path / "goods.parquet"), "format": "parquet", "text_column": None, "columns": columns}
    job = made(jobs, tmp_path / "a", source)
    assert {file.suffix for file in split_files(job.output, "train")} == {".arrow"}
    found = opened(job, ["n", "photo", "sound", "codes"])
    assert sorted(found.column("n")) == list(range(31))
    for place, n in enumerate(found.column("n")):
        values = [found.value(name, place) for name in ("photo", "sound", "codes")]
        assert values == ([png(n), wav(n), [n, -n]] if n < 30 else [None, None, None])
    card = {line["column"]: line for line in json.loads((job.records / "card.json").read_text())["columns"]}
    assert card["photo"]["sizes"] == {"height": [3, 3], "width": [4, 4]} and card["photo"]["missing"] == 1
    assert card["sound"]["sizes"]["seconds"] == [0.01, 0.01]
    assert (card["codes"]["of"], card["codes"]["most"]) == ("items", 2)

    again = made(jobs, tmp_path / "b", {"stage": "goods", "text_column": None, "columns": columns},
                 inputs={"sources": [jobs.stored(tmp_path / "store", job.output, "dataset", stage="goods")]})  # fmt: skip
    second = opened(again, ["n", "photo"])
    by_number = {n: second.value("photo", i) for i, n in enumerate(second.column("n"))}
    assert by_number == {n: found.value("photo", i) for i, n in enumerate(found.column("n"))}
    digests = [[hashlib.sha256(f.read_bytes()).hexdigest() for f in split_files(j.output, "train")]
               for j in (job, made(jobs, tmp_path / "other" / "c", source))]  # fmt: skip
    assert digests[0] == digests[1], "equal rows are equal bytes in another store"


def test_a_broken_image_is_set_aside_with_its_name(jobs: ModuleType, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    (folder / "cat" / "cut.png").write_bytes(png(1)[:50])
    source = {"files": f"{folder}/*/*.png", "format": "image"}
    with pytest.raises(StageError, match="1 of 11 files cannot be read"):
        made(jobs, tmp_path / "a", source)
    job = made(jobs, tmp_path / "b", source, label={"from": "folder"}, max_bad_share=0.2)
    (line,) = (job.records / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "cat/cut.png" and "holds no image" in json.loads(line)["reason"]
    found = opened(job, ["id", "text", "label", "image"])
    assert sorted(zip(found.column("id"), found.column("label"), strict=True))[:2] == [("cat/0.png", "cat"), ("cat/2.png", "cat")]  # fmt: skip
    assert set(found.column("text")) == {""}
    assert found.value("image", found.column("id").index("dog/3.png")) == png(60)


def test_metadata_beside_the_files_gives_further_columns(jobs: ModuleType, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.png"))]
    lines = ["file_name,caption,stars,kind", *(f"{name},a {name},{i},k{i % 3}" for i, name in enumerate(names))]
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    source = {"files": f"{folder}/**", "format": "image", "columns": {"caption": "string", "stars": "int32"}}
    found = opened(
        made(jobs, tmp_path / "a", source, label={"from": "column:kind"}), ["id", "label", "caption", "stars"]
    )
    assert len(found) == 10
    assert found.column("caption") == [f"a {name}" for name in found.column("id")]
    assert dict(zip(found.column("id"), found.column("stars"), strict=True)) == {n: i for i, n in enumerate(names)}
    (folder / "metadata.csv").write_text("\n".join([*lines[:-1], lines[-1].replace(",9,", ",7,")]))
    changed = opened(made(jobs, tmp_path / "b", source), ["id", "stars"])
    assert changed.value("stars", changed.column("id").index(names[9])) == 7


@pytest.mark.parametrize("kind", ["image", "audio"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_metadata_names_what_is_not_there_and_leaves_out_what_is(
    jobs: ModuleType, tmp_path: Path, kind: str, suffix: str
) -> None:
    """`imagefolder` and `audiofolder`: a file that metadata do not name has missing values; one that is not there ends
    the stage, by name. Metadata lie in any folder and hold for what lies below it."""
    folder, make = tmp_path / "files", {"image": png, "audio": wav}[kind]
    for i, name in enumerate(("a/0.bin", "a/deep/1.bin", "b/2.bin", "3.bin")):
        file = (folder / name).with_suffix({"image": ".png", "audio": ".wav"}[kind])
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(make(10 * i))
    end = {"image": "png", "audio": "wav"}[kind]

    def write(place: Path, rows: list[dict[str, Any]]) -> None:
        lines = [json.dumps(row) for row in rows] if suffix == "jsonl" else [",".join(rows[0])]
        lines += [",".join(map(str, row.values())) for row in rows] if suffix == "csv" else []
        (place / f"metadata.{suffix}").write_text("\n".join(lines) + "\n")

    write(folder / "a", [{"file_name": f"0.{end}", "stars": 5}, {"file_name": f"deep/1.{end}", "stars": 4}])
    write(folder, [{"file_name": f"3.{end}", "stars": 1}])
    source = {"files": f"{folder}/**", "format": kind, "columns": {"stars": "int32"}}
    found = opened(made(jobs, tmp_path / "a", source), ["id", "stars", kind])
    assert dict(zip(found.column("id"), found.column("stars"), strict=True)) == {
        f"3.{end}": 1, f"a/0.{end}": 5, f"a/deep/1.{end}": 4, f"b/2.{end}": None
    }  # fmt: skip
    assert found.value(kind, found.column("id").index(f"b/2.{end}")) == make(20)
    write(folder, [{"file_name": f"3.{end}", "stars": 1}, {"file_name": f"none.{end}", "stars": 2}])
    with pytest.raises(StageError, match=rf"metadata of 1 files that are not there: none\.{end}(?s:.*)relative to"):
        made(jobs, tmp_path / "b", source)
    write(folder, [{"file": f"3.{end}", "stars": 1}])
    with pytest.raises(StageError, match="a row of the metadata has no file_name"):
        made(jobs, tmp_path / "c", source)
    write(folder, [{"file_name": f"3.{end}", "stars": 1}] * 2)
    with pytest.raises(StageError, match=rf"'3\.{end}' is there twice"):
        made(jobs, tmp_path / "d", source)


def test_sounds_are_read_as_images_are(jobs: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "yes").mkdir()
    for i in range(4):
        (tmp_path / "yes" / f"{i}.wav").write_bytes(wav(i))
    job = made(jobs, tmp_path / "a", {"files": f"{tmp_path}/yes/*.wav", "format": "audio"})
    found = opened(job, ["id", "audio"])
    assert [found.value("audio", i) for i in range(4)] == [wav(int(name[0])) for name in found.column("id")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"files": "a/*.png"}, "write `format: image`"),
        ({"files": "a/*.png", "format": "audio"}, r"\.png contradicts `format: audio`"),
        ({"files": "a/*.png", "format": "image", "text_column": "t"}, "format image has no text"),
        ({"files": "a/*", "format": "image", "template": "{a}"}, "has no texts and no ids"),
    ],
)
def test_what_an_image_source_cannot_be(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        dataset.Params.model_validate({"sources": [source]})


def test_the_report_shows_thumbnails_and_plays_sounds(jobs: ModuleType, tmp_path: Path) -> None:
    """No sample is larger than 64 KB, whatever the image or sound behind it."""
    noise = io.BytesIO()
    Image.effect_noise((400, 300), 90).save(noise, "PNG")
    rows = [{"photo": noise.getvalue(), "sound": wav(3, 90_000)}, {"photo": png(9), "sound": wav(4)}]
    assert min(len(rows[0]["photo"]), len(rows[0]["sound"])) > 64 << 10
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "goods.parquet")
    source = {"files": str(tmp_path / "goods.parquet"), "format": "parquet", "text_column": None,
              "columns": {"photo": "image", "sound": "audio"}}  # fmt: skip
    job = made(jobs, tmp_path / "a", source)
    (view,) = data_views({"goods": Evidence({}, records=job.records)}, [])
    assert view["opened_with"] == 'datasets.load_dataset("FOLDER")'
    first, second = sorted(view["examples"], key=lambda example: "400 x 300 pixels" not in example["text"])
    assert "11.25 seconds at 8,000 Hz" in first["text"] and "4 x 3 pixels" in second["text"]
    for example in (first, second):
        for url in (*example["pictures"], *example["sounds"]):
            assert len(base64.b64decode(url.partition(",")[2])) <= 64 << 10
    shown = [base64.b64decode(example["pictures"][0].partition(",")[2]) for example in (first, second)]
    with Image.open(io.BytesIO(shown[0])) as small:
        assert small.size == (160, 120)
    assert shown[1] == png(9) and first["sounds"][0].startswith("data:audio/wav;base64,")
    said = {column["name"]: column["text"] for column in view["columns"]}
    assert said["photo"].endswith("; height 3 to 300; width 4 to 400")


# --- what differs -----------------------------------------------------------------------------------------------------


def test_new_images_are_found_by_what_they_show(jobs: ModuleType, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    source, store = {"files": f"{folder}/*/*.png", "format": "image"}, tmp_path / "store"
    before = jobs.stored(store, made(jobs, tmp_path / "a", source).output, "dataset").manifest
    (folder / "cat" / "copy.png").write_bytes(png(0))
    (folder / "cat" / "new.png").write_bytes(png(255))
    after = made(jobs, tmp_path / "b", source)
    found = new_rows(after.store, jobs.stored(store, after.output, "dataset").manifest, before)
    assert [row["id"] for row in found] == ["cat/new.png"]


def drift(jobs: ModuleType, folder: Path, **given: Any) -> dict[str, Any]:
    """What `compare` says of two datasets, `data` and `against`."""
    job = jobs.make_job(
        folder / "compare", compare.Params.model_validate({"data": "data", "against": "against"}), given
    )
    compare.run(job)
    found: dict[str, Any] = json.loads((job.output / "drift.json").read_text())
    return found


def test_drift_of_images_is_of_sizes_and_classes_and_says_so(jobs: ModuleType, tmp_path: Path) -> None:
    given = {}
    for name, sizes in (("against", ((4, 3), (5, 3))), ("data", ((8, 3), (9, 3)))):
        for part in range(4):
            photos(tmp_path / name / str(part), sizes)
        for i, file in enumerate(sorted((tmp_path / name).rglob("*.png"))):
            file.write_bytes(png(i, sizes[i % 2]))
        source = {"files": f"{tmp_path}/{name}/*/*/*.png", "format": "image"}
        job = made(jobs, tmp_path / f"{name}_job", source, label={"from": "folder"})
        given[name] = jobs.stored(tmp_path / "store", job.output, "dataset", stage=name)
    found = drift(jobs, tmp_path, **given)
    verdicts = {row["name"]: row["drifted"] for row in found["differences"]}
    assert verdicts["column image width"] and not verdicts["column image height"] and not verdicts["label"]
    assert found["not_tested"] == ["what the column image shows: only its sizes were compared"]


def heard(jobs: ModuleType, folder: Path, seed: int, *, longer: int = 0, more: int = 0) -> Any:
    """100 rows of a sound of 40 to 119 samples and of 5 to 14 numbers; `longer`, `more`: so many more of each."""
    random = np.random.default_rng(seed)
    rows = [
        {
            "sound": wav(int(random.integers(1000)), int(random.integers(40, 120)) + longer),
            "codes": random.integers(0, 9, int(random.integers(5, 15)) + more).tolist(),
        }
        for _ in range(100)
    ]
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "heard.parquet")
    source = {"files": str(folder / "heard.parquet"), "format": "parquet", "text_column": None,
              "columns": {"sound": "audio", "codes": "list<int32>"}}  # fmt: skip
    job = made(jobs, folder / "job", source)
    return jobs.stored(folder.parent / "store", job.output, "dataset", stage=folder.name)


def test_drift_of_sounds_and_lists_is_of_how_long_they_are(jobs: ModuleType, tmp_path: Path) -> None:
    """The same lengths drawn again are no drift; each shift is found, in what has shifted and nowhere else."""
    against = heard(jobs, tmp_path / "against", 0)
    shifts: dict[str, tuple[dict[str, int], set[str]]] = {
        "same": ({}, set()),
        "longer": ({"longer": 40}, {"column sound seconds", "column sound bytes"}),
        "more": ({"more": 5}, {"column codes"}),
    }
    for seed, (name, (shift, expected)) in enumerate(shifts.items(), 1):
        data = heard(jobs, tmp_path / name, seed, **shift)
        found = drift(jobs, tmp_path / name, data=data, against=against)
        assert {row["name"] for row in found["differences"] if row["drifted"]} == expected, name
        assert {row["name"] for row in found["differences"]} == {
            "column sound seconds", "column sound bytes", "column sound rate", "column codes"
        }  # fmt: skip
        assert found["drifted"] == bool(expected)
        said = {row["name"]: row["told"] for row in found["differences"]}
        assert said["column sound rate"] == "sound rate: median 8,000 -> 8,000"


def test_watch_tells_a_shift_of_sounds_from_new_sounds(jobs: ModuleType, tmp_path: Path) -> None:
    before, store = heard(jobs, tmp_path / "before", 0).manifest, open_store(str(tmp_path / "store"))
    last: Any = type("Last", (), {"dataset": lambda self, store, name: before})()
    for name, longer in (("same", 0), ("longer", 40)):
        rows = new_rows(store, heard(jobs, tmp_path / name, 1, longer=longer).manifest, before)
        assert len(rows) == 100
        said = " ".join(watching._drift(store, last, {"sounds": rows}))
        assert ("column sound seconds of sounds" in said) == bool(longer) and "codes" not in said

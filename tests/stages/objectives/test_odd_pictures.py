"""A folder of pictures as people have them, some of them broken, through dataset, finetune and evaluate."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.errors import StageError
from tasks.data.dataset.layout import describe
from tasks.data.dataset.shown_media import thumbnail
from tasks.data.reading.media import check_image
from tasks.processors.image import ImageProcessor
from tasks.stage import stages

SIDE = 8
GIVEN = {"name": "image_classification", "image_size": SIDE, "channels": 3}
RESNET = {"type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def encoded(picture: Any, format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def photo(seed: int, size: tuple[int, int] = (16, 12)) -> Image.Image:
    """Noise of `size` (width, height), red."""
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(values)


def turned() -> bytes:
    """The upper half of what people see is white; stored on its side, as phones do it."""
    seen = np.zeros((16, 16, 3), np.uint8)
    seen[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    return encoded(Image.fromarray(np.rot90(seen).copy()), "PNG", exif=exif)


def sixteen() -> bytes:
    return encoded(Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000), "PNG")


def moving() -> bytes:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


ODD = {
    "cat/cmyk.jpg": lambda: encoded(photo(1).convert("CMYK"), "JPEG"),
    "cat/turned.png": turned,
    "dog/sixteen.png": sixteen,
    "dog/moving.gif": moving,
    "dog/see through.png": lambda: encoded(photo(2).convert("RGBA"), "PNG"),
}
BROKEN = {
    "cat/cut.jpg": (lambda: encoded(photo(3, (64, 64)), "JPEG")[:900], "truncated"),
    "cat/cut.png": (lambda: encoded(photo(3, (64, 64)), "PNG")[:900], "truncated"),
    "cat/empty.jpg": (lambda: b"", "it has no bytes"),
    "dog/text.jpg": (lambda: b"no picture at all", "of no format that Pillow knows"),
    "dog/wide.tiff": (lambda: encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "32 bits (mode F)"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("odd") / "photos"
    files = {f"{('cat', 'dog')[i % 2]}/{i}.jpg": encoded(photo(10 + i), "JPEG") for i in range(40)}
    files |= {name: make() for name, make in ODD.items()} | {name: make() for name, (make, _) in BROKEN.items()}
    for name, content in files.items():
        (made / name).parent.mkdir(parents=True, exist_ok=True)
        (made / name).write_bytes(content)
    (made / "bird").mkdir()  # a class without a picture
    return made


def test_bad_files_are_set_aside_by_name_and_good_ones_go_all_the_way(
    jobs: ModuleType, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORGELINE_CACHE", str(tmp_path / "cache"))

    def run(name: str, kind: str, given: dict[str, Any], **inputs: Any) -> Any:
        stage = stages()[kind]
        job = jobs.make_job(
            tmp_path / name, stage.params.model_validate(given), inputs, name=name, store=tmp_path / "store"
        )
        job.version = stage.version
        job.metrics = stage.run(job)
        jobs.collect(job)
        return job

    given = {"sources": [{"files": f"{folder}/*/*", "format": "image"}], "label": {"from": "folder"},
             "split": {"by": "row", "validation": 0.2, "test": 0.3}}  # fmt: skip
    with pytest.raises(StageError, match="5 of 50 files cannot be read"):
        run("strict", "dataset", given)
    read = run("photos", "dataset", given | {"max_bad_share": 0.2})
    lines = [json.loads(line) for line in (read.records / "quarantine.jsonl").read_text().splitlines()]
    assert {line["path"] for line in lines} == set(BROKEN)
    for line in lines:
        assert BROKEN[line["path"]][1] in line["reason"] and "0x" not in line["reason"]
    assert (read.metrics["quarantined"], read.metrics["rows"]) == (5, 45)
    assert describe(read.output)["labels"] == ["cat", "dog"]

    data = jobs.artifact(read.output, "dataset", stage="photos")
    budget = {"data": "d", "objective": GIVEN, "global_batch_size": 10, "learning_rate": 1e-3, "max_steps": 6}
    first = run("first", "pretrain", {"model": RESNET, **budget}, data=data)
    model = jobs.artifact(first.output, "model", stage="first")
    tuned = run("tuned", "finetune", {"model": "m", "new_head": True, **budget}, model=model, data=data)
    model = jobs.artifact(tuned.output, "model", stage="tuned")
    given = {"models": ["tuned"], "data": "d", "resamples": 100, "latency": {"repeats": 2}}
    for split in ("train", "validation", "test"):  # between them every picture
        artifact = jobs.artifact(read.output, "dataset", stage="photos", split=split)
        judged = run(f"of_{split}", "evaluate", given, models=[model], data=artifact)
        scores = json.loads((judged.output / "scores.json").read_text())
        assert scores["data"]["n"] == describe(read.output)["splits"][split]


def test_odd_pictures_are_what_people_see() -> None:
    processor = ImageProcessor(8, (0.5,) * 3, (0.5,) * 3)
    upright = processor.pixels(turned())
    assert (upright[:, :4] > 200).all() and (upright[:, 4:] < 50).all()
    expected = np.arange(64).reshape(8, 8) * 1000 // 256
    assert (processor.pixels(sixteen()) == expected).all()
    first = processor.pixels(moving())
    assert (first[0] > 200).all() and (first[1:] < 50).all(), "the first frame"
    for make in ODD.values():
        assert processor.pixels(make()).shape == (3, 8, 8) and thumbnail(make())
        check_image(make())


def test_each_kind_of_broken_file_is_told_from_good_ones_before_a_model_meets_it() -> None:
    for make, reason in BROKEN.values():
        with pytest.raises(ValueError) as caught:
            check_image(make())
        assert reason in str(caught.value)

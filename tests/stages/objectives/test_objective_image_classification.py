"""image_classification: pictures as a model reads them, changed by their place, through every stage."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from transformers import ViTImageProcessor

from infra.errors import StageError
from infra.execution import Execution
from tasks.data.dataset.shown_media import PICTURE_URL
from tasks.objectives.image.image_classification import ImageClassification
from tasks.objectives.image.inputs.augmentation import Changes, ImageAugmentation, changed_pixels
from tasks.processors.image import FILE, ImageProcessor
from tasks.release.evidence import Evidence
from tasks.release.report.views.samples import samples_views
from tasks.stage import stages

SIDE, LABELS = 12, ["down", "left", "right", "up"]
GIVEN = {"name": "image_classification", "image_size": SIDE, "channels": 1}
MODELS: dict[str, dict[str, Any]] = {
    "resnet": {"type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "vit": {
        "type": "vit",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "patch_size": 4,
    },
}


def png(pixels: Any) -> bytes:
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "PNG")
    return written.getvalue()


def picture(number: int, label: str) -> bytes:
    """16 x 16 of noise, one side of which is bright."""
    pixels = np.random.default_rng(number).integers(0, 100, (16, 16), np.uint8)
    bright = {"up": np.s_[:6], "down": np.s_[-6:], "left": np.s_[:, :6], "right": np.s_[:, -6:]}
    pixels[bright[label]] += 150
    return png(pixels)


@pytest.fixture(scope="module")
def data(jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, sizes = tmp_path_factory.mktemp("pictures"), {"train": 120, "validation": 40, "test": 40}
    number = 0
    for split, size in sizes.items():
        labels = [LABELS[i % 4] for i in range(size)]
        names = [f"{split}/{i}" for i in range(size)]
        images = [picture(number + i, label) for i, label in enumerate(labels)]
        number += size
        if split == "test":
            labels[3] = "down"  # a mistake of the data's: no model says so
        (folder / split).mkdir()
        table = pa.table({"id": names, "text": [""] * size, "group": names, "label": labels, "image": images})
        pq.write_table(table, folder / split / "0.parquet")
    columns = ["id", "text", "group", "label", "image"]
    (folder / "dataset.json").write_text(json.dumps({"splits": sizes, "labels": LABELS, "columns": columns}))
    return jobs.artifact(folder, "dataset", stage="pictures")


# --- what a model reads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_hugging_faces_own_processor(tmp_path: Path, channels: int) -> None:
    """From the very file that is written: size, scale, mean and deviation mean there what they mean here."""
    shape = (20, 14) if channels == 1 else (20, 14, 3)
    encoded = png(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    made = ImageProcessor(8, (0.4,) * channels, (0.25,) * channels)
    made.save(tmp_path)
    assert ImageProcessor.load(tmp_path) == made
    theirs = ViTImageProcessor.from_pretrained(tmp_path)
    opened = Image.open(io.BytesIO(encoded)).convert("L" if channels == 1 else "RGB")
    array = np.asarray(opened.resize((8, 8), Image.Resampling.BILINEAR)).reshape(8, 8, channels)
    expected = theirs(array, do_resize=False, input_data_format="channels_last", return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(made.scaled(made.pixels(encoded)), expected, atol=1e-6)


def test_a_picture_for_people_is_the_one_the_model_read() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (1, 8, 8), np.uint8)
    made = ImageProcessor(8, (0.3,), (0.2,))
    assert (made.pixels(made.png(made.scaled(pixels))) == pixels).all()


def test_settings_that_would_be_misread_are_refused(tmp_path: Path) -> None:
    for wrong, says in (
        ({"size": {"height": 8, "width": 9}}, "one square"),
        ({"size": 8, "image_mean": [0, 0]}, "chan"),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, "cuts the edges of pictures off"),
        ({"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224}, "cuts the edges of pictures off"),
    ):
        (tmp_path / FILE).write_text(json.dumps(wrong))
        with pytest.raises(StageError, match=says):
            ImageProcessor.load(tmp_path)
    with pytest.raises(StageError, match="`num_channels` 3, and these have 1"):
        model: Any = type("Model", (), {"config": type("Config", (), {"num_channels": 3})()})()
        ImageProcessor(8, (0.5,), (0.5,)).require_fit(model, where="model")


def test_a_file_that_is_no_picture_is_named(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    folder = tiny.write_dataset(tmp_path / "broken", {"train": {"text": ["", ""], "image": [b"GIF89a", None]}})
    examples = (
        ImageClassification().bound(ImageProcessor(8, (0.5,), (0.5,)))
        .examples(jobs.artifact(folder, "dataset", stage="photos"), "train", labelled=False)
    )  # fmt: skip
    for place, says in ((0, "'train/0' has no picture that Pillow can read"), (1, "'train/1' has no encoded picture")):
        with pytest.raises(StageError, match=says):
            examples[place]


# --- augmentation -----------------------------------------------------------------------------------------------------


def test_changes_by_hand() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(1, 4, 4) * 10
    rng = np.random.default_rng(0)
    assert (changed_pixels(pixels, Changes(flip=1.0), rng) == pixels[:, :, ::-1]).all()
    moved = {changed_pixels(pixels, Changes(shift=0.3), rng)[0, 0, 0].item() for _ in range(60)}
    assert moved == {0, 10, 40, 50}, (
        "one step down or to the right repeats the edge; one up or to the left brings it in"
    )
    bright = changed_pixels(pixels, Changes(brightness=0.1), np.random.default_rng(3)).astype(int) - pixels
    assert len(set(bright[pixels > 30].tolist())) == 1 and 0 < abs(bright[0, 3, 0]) <= 26
    erased = changed_pixels(pixels, Changes(erase=0.9), np.random.default_rng(4))
    assert (erased != pixels).any() and set(erased[erased != pixels].tolist()) == {75}


def test_a_change_is_a_function_of_seed_and_place(data: Any) -> None:
    from tasks.training.loop.features import AugmentedExamples

    bound = ImageClassification.model_validate(GIVEN).bound(ImageProcessor(SIDE, (0.5,), (0.5,)))
    plain = bound.examples(data, "train")
    augment = ImageAugmentation(image=Changes(shift=0.2, noise=0.05))
    one, other = (AugmentedExamples(bound, plain, augment, seed=7) for _ in range(2))
    assert (one.drawn(3, 11)["pixel_values"] == other.drawn(3, 11)["pixel_values"]).all()
    assert (one.drawn(3, 11)["pixel_values"] != one.drawn(3, 12)["pixel_values"]).any()
    assert (one[3]["pixel_values"] == plain[3]["pixel_values"]).all(), "by index they are as they are"
    assert one.truth["label"].tolist() == plain.truth["label"].tolist()


def test_an_augmentation_of_texts_is_refused_before_anything_runs() -> None:
    params = stages()["finetune"].params
    given = {"model": "m", "data": "d", "max_steps": 1, "objective": GIVEN}
    assert params.model_validate({**given, "augment": {"image": {"flip": 0.5}}})
    with pytest.raises(ValidationError, match="`augment` is for text, and image_classification reads image"):
        params.model_validate({**given, "augment": {"delete": 0.1}})
    with pytest.raises(ValidationError, match="no setting `flip`"):
        params.model_validate({**given, "augment": {"flip": 0.1}})


@pytest.mark.parametrize("threads", [1, 3])
def test_as_many_threads_decode_as_the_settings_say_and_batches_do_not_differ(threads: int, data: Any) -> None:
    import threading

    from tasks.data.dataset.examples import Examples
    from tasks.training.loop.loader import Loader
    from tasks.training.loop.sampler import BatchSplit, Sampler

    bound = ImageClassification.model_validate(GIVEN).bound(ImageProcessor(SIDE, (0.5,), (0.5,)))
    plain, seen = bound.examples(data, "train"), set[str]()
    meeting = threading.Barrier(threads, timeout=20)

    class Watched(Examples):
        decodes = True

        def __len__(self) -> int:
            return len(plain)

        def example(self, index: int) -> Any:
            meeting.wait()  # passes only where that many work at once
            seen.add(threading.current_thread().name)
            return plain[index]

    batch = BatchSplit(12, 1, 12)
    loaders = [
        Loader(Watched(), bound, Sampler(120, 0, batch), 0, threads),
        Loader(plain, bound, Sampler(120, 0, batch), 0),
    ]
    (watched, expected) = (loader.step(0, last=True)[0][1] for loader in loaders)
    for loader in loaders:
        loader.close()
    assert len(seen) == threads and all(name.startswith("decoder") for name in seen)
    assert torch.equal(watched["pixel_values"], expected["pixel_values"])
    assert Execution().loader_threads == 4


# --- through the stages -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chain(jobs: ModuleType, data: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Artifacts and metrics of every stage that takes a model: a ResNet all the way, and a ViT that learns from it."""
    folder, made = tmp_path_factory.mktemp("chain"), dict[str, Any]()

    def run(name: str, kind: str, given: dict[str, Any], **inputs: Any) -> None:
        stage = stages()[kind]
        job = jobs.make_job(folder / name, stage.params.model_validate(given), inputs, name=name)
        metrics = stage.run(job)
        made[name] = jobs.artifact(job.output, stage.makes, stage=name)
        made[f"{name}.metrics"], made[f"{name}.records"] = metrics, job.records

    budget = {"global_batch_size": 20, "epochs": 4, "learning_rate": 1e-2}
    for family, fields in MODELS.items():
        given = {"data": "d", "objective": GIVEN, "model": fields, **budget}
        run(family, "pretrain", given, data=data)
    short = {"global_batch_size": 20, "max_steps": 2, "learning_rate": 1e-3}
    augment = {"image": {"shift": 0.1}}
    given = {"model": "m", "data": "d", "objective": GIVEN, "new_head": True, "augment": augment, **budget}
    run("finetuned", "finetune", given, model=made["resnet"], data=data)
    run("answers", "soft_targets", {"teacher": "t", "data": "d"}, teacher=made["finetuned"], data=data)
    made_of = [{"field": "teacher", "digest": made["finetuned"].manifest.digest, "split": None},
               {"field": "data", "digest": data.manifest.digest, "split": None}]  # fmt: skip
    made["answers"] = replace(made["answers"], manifest=replace(made["answers"].manifest, identity={"inputs": made_of}))
    given = {"teacher": "t", "soft_targets": "s", "student": "v", "data": "d", **budget}
    inputs = {"teacher": made["finetuned"], "soft_targets": made["answers"], "student": made["vit"], "data": data}
    run("taught", "distill", given, **inputs)
    given = {"teacher": "t", "data": "d", "layers": 1, "hidden": 1.0, **short}
    run("shallow", "distill", given, teacher=made["taught"], data=data)
    run("pruned", "prune", {"model": "m", "data": "d", "keep": 0.5, "samples": 40, "heal": short},
        model=made["taught"], data=data)  # fmt: skip
    run(
        "aware",
        "qat",
        {"model": "m", "data": "d", "scheme": "static_int8", **short},
        model=made["finetuned"],
        data=data,
    )
    run("onnx", "export", {"model": "m", "data": "d"}, model=made["aware"], data=data)
    run("int8", "quantize", {"model": "m", "data": "d", "scheme": "static_int8", "samples": 40},
        model=made["onnx"], data=data)  # fmt: skip
    models = [made[name] for name in ("resnet", "finetuned", "taught", "onnx", "int8")]
    asked = {"noisy": {"image": {"noise": 0.05}}}
    given = {"models": ["a"], "data": "d", "resamples": 100, "latency": {"repeats": 2}, "perturbations": asked}
    run("scores", "evaluate", given, models=models, data=data)
    return made


def test_every_stage_takes_pictures_and_models_of_both_kinds_learn(chain: dict[str, Any]) -> None:
    scores = json.loads((chain["scores"].path / "scores.json").read_text())
    found = {name: one["metrics"]["f1_macro"]["value"] for name, one in scores["models"].items()}
    majority = scores["baselines"]["majority"] if "baselines" in scores else 0.1
    assert majority < 0.2 and min(found.values()) > 0.8, found
    assert "f1_macro_drop[noisy]" in scores["models"]["int8"]["metrics"]
    assert chain["onnx.metrics"]["max_abs_diff"] < 1e-3 and chain["onnx.metrics"]["agreement"] == 1.0
    layers = json.loads((chain["int8.records"] / "layers.json").read_text())
    assert sum(layer["operator"] == "Conv" for layer in layers) >= 5, "the head is one layer among many"
    assert all(layer["quantized"] for layer in layers)
    assert chain["pruned.metrics"]["parameters_ratio"] < 1
    for name in ("resnet", "vit"):
        line = json.loads((chain[f"{name}.records"] / "train.jsonl").read_text().splitlines()[-1])
        assert line["images_per_second"] > 0 and 0 < line["mfu"] < 1


def test_what_ships_reads_pictures_alone_as_the_evaluation_did(chain: dict[str, Any], data: Any) -> None:
    """The code of the model's page, in a process without Forgeline, on a picture of the test split."""
    from tasks.models.card import read_card
    from tasks.models.runtime import OnnxRuntime
    from tasks.models.trained_for import trained_for
    from tasks.release.promotion.model_page import _loader

    folder = chain["int8"].path
    objective = trained_for(folder)
    assert {FILE, "config.json", "model.onnx"} <= {path.name for path in folder.iterdir()}
    code = _loader(folder, read_card(folder))
    encoded = pq.read_table(data.path / "test/0.parquet").column("image")[5].as_py()
    (folder / "picture.png").write_bytes(encoded)
    guard = "import sys\nsys.modules.update(dict.fromkeys(('flows', 'tasks', 'infra')))\n"
    guard += "import numpy as np, builtins\nprint = lambda x: builtins.print(np.asarray(x).tolist())\n"
    done = subprocess.run([sys.executable, "-c", guard + code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = np.array(json.loads(done.stdout.strip().splitlines()[-1]))[0]
    batch = {"pixel_values": objective.examples(data, "test")[5]["pixel_values"][None]}
    expected = OnnxRuntime(folder, 1).outputs(batch)["logits"][0]
    np.testing.assert_allclose(said, expected, atol=1e-4)


def test_samples_hold_the_pictures_with_truth_and_answer(chain: dict[str, Any]) -> None:
    samples = json.loads((chain["finetuned.records"] / "samples.json").read_text())
    assert len(samples) == 8 and {sample["truth"] for sample in samples} <= set(LABELS)
    opened = Image.open(io.BytesIO(base64.b64decode(samples[0]["picture"].partition(",")[2])))
    assert opened.size == (SIDE, SIDE)


def test_what_models_got_wrong_is_shown_as_it_is_in_the_data(chain: dict[str, Any], data: Any) -> None:
    wrong = json.loads((chain["scores.records"] / "misclassified.json").read_text())
    mislabelled = next(row for row in wrong if row["id"] == "test/3")
    assert mislabelled["truth"] == "down" and set(mislabelled["predictions"].values()) == {"up"}
    table = pq.read_table(data.path / "test/0.parquet").to_pydict()
    for row in wrong:
        encoded = base64.b64decode(row["picture"].partition(",")[2])
        assert encoded == table["image"][table["id"].index(row["id"])], "small enough to be shown as it is"
    (view,) = samples_views({"scores": Evidence({}, records=chain["scores.records"])}, [])[-1:]
    assert [mistake["picture"] for mistake in view["mistakes"]] == [row["picture"] for row in wrong][:12]


def test_a_picture_on_a_page_is_small_whatever_it_is_made_from(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 400, 3), np.uint8)
    images = [png(noise), b"no picture", png(noise[:16, :16]), None]
    assert len(images[0]) > 64 << 10
    folder = tiny.write_dataset(tmp_path / "noise", {"test": {"text": [""] * 4, "image": images}})
    shown = ImageClassification().pictures(jobs.artifact(folder, "dataset", stage="noise"), "test", [2, 0, 1, 3])
    assert shown[2:] == [None, None] and shown[0] == f"data:image/png;base64,{base64.b64encode(images[2]).decode()}"
    assert all(PICTURE_URL.fullmatch(str(url)) for url in shown[:2])
    with Image.open(io.BytesIO(base64.b64decode(str(shown[1]).partition(",")[2]))) as small:
        assert max(small.size) == 160 and len(str(shown[1])) < 90_000


def test_generate_says_that_this_objective_generates_nothing(
    jobs: ModuleType, chain: dict[str, Any], data: Any, tmp_path: Path
) -> None:
    stage = stages()["generate"]
    params = stage.params.model_validate({"models": ["vit"], "data": "d"})
    job = jobs.make_job(tmp_path, params, {"models": [chain["vit"]], "data": data})
    with pytest.raises(StageError, match="image_classification generates nothing"):
        stage.run(job)


def test_another_size_of_pictures_is_no_teacher(
    jobs: ModuleType, chain: dict[str, Any], data: Any, tmp_path: Path
) -> None:
    given = {**GIVEN, "image_size": SIDE + 4}
    stage = stages()["pretrain"]
    params = stage.params.model_validate({"data": "d", "objective": given, "model": MODELS["vit"], "max_steps": 1})
    job = jobs.make_job(tmp_path / "other", params, {"data": data}, name="other")
    stage.run(job)
    stage = stages()["distill"]
    params = stage.params.model_validate({"teacher": "t", "student": "s", "data": "d", "max_steps": 1})
    student = jobs.artifact(job.output, "model", stage="other")
    job = jobs.make_job(tmp_path / "d", params, {"teacher": chain["vit"], "student": student, "data": data}, name="d")
    with pytest.raises(StageError, match="another size, number of channels or scale of pictures than its teacher"):
        stage.run(job)


def test_parity_with_a_bare_loop_over_the_models_own_loss(parity: Any, data: Any) -> None:
    """ViT, whose batches are independent examples; of BatchNorm see `test_batch_norm.py`."""
    from transformers import ViTConfig, ViTForImageClassification

    bound = ImageClassification.model_validate(GIVEN).bound(ImageProcessor(SIDE, (0.5,), (0.5,)))

    def fresh() -> Any:
        torch.manual_seed(0)
        fields = {name: value for name, value in MODELS["vit"].items() if name != "type"}
        return ViTForImageClassification(ViTConfig(image_size=SIDE, num_channels=1, num_labels=4, **fields))

    def own(model: Any, examples: Any, batch: Any) -> Any:
        return model(pixel_values=batch["pixel_values"], labels=batch["labels"]).loss

    parity(bound, bound.examples(data, "train")[:40], fresh, mean_loss=own, micro=4, falls=0.05)

"""Folders of weights that others left: what is healthy is read, what is not is refused by name, with the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForTokenClassification,
)

from infra.errors import StageError
from tasks.stages import pretrained

Tensors = dict[str, torch.Tensor]


def save(tiny: ModuleType, folder: Path, type: str, auto: Any, **fields: Any) -> Path:
    tiny.model(type, auto, **fields).save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def read(jobs: ModuleType, folder: Path, place: Path, **given: Any) -> Path:
    job = jobs.make_job(place, pretrained.Params(folder=str(folder), max_length=32, **given))
    pretrained.run(job)
    output: Path = job.output
    return output


def gamma(tensors: Tensors) -> Tensors:
    """As BERT's first checkpoints call the weights of a norm; with a constant that newer ones compute."""
    renamed = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in tensors.items()}  # fmt: skip
    return {**renamed, "bert.embeddings.position_ids": torch.arange(64)[None]}


def bare_gpt2(tensors: Tensors) -> Tensors:
    """As GPT-2's own checkpoint is: no prefix, masks among the weights."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    return {**bare, "h.0.attn.bias": torch.ones(1, 1, 64, 64), "h.0.attn.masked_bias": torch.tensor(-1e4)}


def untied_t5(tensors: Tensors) -> Tensors:
    """As T5's first checkpoints: the shared embeddings twice, and a table that no model ever read."""
    table = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    return {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"].clone(), table: torch.ones(32, 2)}


@pytest.mark.parametrize(
    ("type", "auto", "change"),
    [
        ("bert", AutoModelForPreTraining, gamma),
        ("bert", AutoModel, dict),
        ("bert", AutoModelForMaskedLM, dict),
        ("roberta", AutoModelForMaskedLM, lambda t: {**t, "roberta.embeddings.position_ids": torch.arange(64)[None]}),
        ("gpt2", AutoModelForCausalLM, bare_gpt2),
        ("gpt2", AutoModelForCausalLM, lambda t: {**t, "lm_head.weight": t["transformer.wte.weight"].clone()}),
        ("llama", AutoModelForCausalLM, lambda t: {**t, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
        ("llama", AutoModel, dict),
        ("t5", AutoModelForSeq2SeqLM, untied_t5),
        ("bart", AutoModelForSeq2SeqLM, dict),
        ("bart", AutoModelForCausalLM, dict),
        ("t5", AutoModelForTokenClassification, dict),
        ("llama", AutoModelForQuestionAnswering, dict),
    ],
)
def test_no_healthy_checkpoint_is_refused(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, type: str, auto: Any, change: Callable[[Tensors], Tensors]
) -> None:
    folder = edit(save(tiny, tmp_path / "given", type, auto), change)
    assert (
        load_file(read(jobs, folder, tmp_path / "job") / "model.safetensors").keys()
        == change(load_file(folder / "model.safetensors")).keys()
    )


def fewer_layers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1, "n_layer": 1, "num_layers": 1}))


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda t: {n: one for n, one in t.items() if n != name}) and None


def added(name: str) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda t: {**t, name: torch.ones(3)}) and None


def broken(name: str, value: float) -> Callable[[Path], None]:
    return lambda folder: edit(folder, lambda t: {**t, name: torch.full_like(t[name], value)}) and None


@pytest.mark.parametrize(
    ("type", "change", "says"),
    [
        ("llama", fewer_layers, r"has 9 weights of a backbone that the config does not describe: model\.layers\.1\."),
        ("bert", fewer_layers, r"has 16 weights of a backbone .*: bert\.encoder\.layer\.1\..* and 11 more"),
        ("t5", fewer_layers, r"weights of a backbone that the config does not describe: encoder\.block\.1\."),
        ("llama", without("model.norm.weight"), r"lacks 1 weights of the backbone: model\.norm\.weight"),
        ("bert", without("bert.encoder.layer.1.output.dense.bias"), r"lacks 1 .*layer\.1\.output\.dense\.bias"),
        ("gpt2", added("transformer.foo.weight"), r"has 1 weights of a backbone .*: transformer\.foo\.weight"),
        ("gpt2", without("transformer.ln_f.weight"), r"lacks 1 weights of the backbone: transformer\.ln_f\.weight"),
        ("bert", broken("bert.encoder.layer.0.output.dense.bias", float("nan")), r"1 weights hold NaN .*dense\.bias"),
        ("bert", broken("cls.predictions.bias", float("inf")), r"hold NaN or infinity: cls\.predictions\.bias"),
    ],
)
def test_weights_and_config_that_disagree_are_refused_by_name(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path, type: str, change: Callable[[Path], None], says: str
) -> None:
    autos = {"bert": AutoModelForMaskedLM, "t5": AutoModelForSeq2SeqLM}
    folder = save(tiny, tmp_path / "given", type, autos.get(type, AutoModelForCausalLM))
    change(folder)
    with pytest.raises(StageError, match=says) as caught:
        read(jobs, folder, tmp_path / "job")
    assert str(caught.value).startswith(f"folder {folder}: ")


@pytest.fixture(scope="module")
def llama(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tiny, tmp_path_factory.mktemp("llama") / "given", "llama", AutoModelForCausalLM)


@pytest.mark.parametrize(
    "wrapped",
    [
        dict,
        lambda t: {"state_dict": t, "epoch": 3},
        lambda t: {"model": {f"module.{name}": tensor for name, tensor in t.items()}, "optimizer": {"lr": 0.1}},
        lambda t: {"module": {"model": {f"_orig_mod.{name}": tensor for name, tensor in t.items()}}},
    ],
    ids=["plain", "state_dict", "ddp", "compiled"],
)
def test_folders_of_trainers_hold_more_than_a_model(
    jobs: ModuleType, llama: Path, tmp_path: Path, wrapped: Callable[[Tensors], Any]
) -> None:
    folder = shutil.copytree(llama, tmp_path / "given")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(wrapped(tensors), folder / "pytorch_model.bin")
    for name in ("optimizer.bin", "scheduler.bin", "training_args.bin"):
        torch.save({"state": Unsafe()}, folder / name)
    before = pretrained.sources(pretrained.Params(folder=str(folder), allow_pickle=True))
    assert [file.path for file in before] == ["config.json", "pytorch_model.bin"]
    found = load_file(read(jobs, folder, tmp_path / "job", allow_pickle=True) / "model.safetensors")
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)


class Unsafe:
    """A thing that is no tensor."""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"weights": Unsafe()}, "pytorch_model.bin holds no plain tensors: it would run test_given_folder.Unsafe"),
        ({"epoch": 3}, "pytorch_model.bin holds no plain tensors: epoch"),
        ([1], "pytorch_model.bin holds a list, and no weights by name"),
        (None, "pytorch_model.bin holds no plain tensors: the file is damaged, or was not written by torch.save"),
    ],
    ids=["code", "numbers", "list", "damaged"],
)
def test_a_pickle_of_other_things_is_refused_in_our_words(
    jobs: ModuleType, llama: Path, tmp_path: Path, content: Any, says: str
) -> None:
    folder = shutil.copytree(llama, tmp_path / "given")
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    if content is None:
        (folder / "pytorch_model.bin").write_bytes(b"nothing of the kind")
    with pytest.raises(StageError) as caught:
        read(jobs, folder, tmp_path / "job", allow_pickle=True)
    said = str(caught.value)
    assert says.replace("test_given_folder", Unsafe.__module__) in said and "save_pretrained" in said
    assert not any(word in said for word in ("weights_only", "safe_globals", "True", "False"))


def emptied(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def replaced(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def config(**fields: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        given = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**given, **fields}))

    return change


def named(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        emptied(folder)
        (folder / name).touch()

    return change


def sharded(folder: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("change", "says", "remedy"),
    [
        (emptied, "there are no weights in", "model.safetensors"),
        (named("adapter_config.json"), "there are no weights in", "merge_and_unload"),
        (named("zero_to_fp32.py"), "there are no weights in", "--safe_serialization"),
        (named("x.gguf"), "there are no weights in", "quantized for inference"),
        (named("weights.safetensors"), "there are no weights in", "should be in model.safetensors"),
        (replaced("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs", "git lfs pull"),
        (replaced("model.safetensors", b"cut short"), "model.safetensors is damaged or cut short", "Fetch"),
        (sharded, "model-00002-of-00002.safetensors is not there", "not copied whole"),
        (replaced("config.json", b"{"), "config.json is no JSON object", "Fetch"),
        (config(model_type=None), "names no `model_type`", "save_pretrained"),
        (config(model_type="ours", auto_map={}), "has no model type 'ours'", "newer transformers"),
        (config(model_type="ours", auto_map={"AutoModel": "m.M"}), "Forgeline runs none", "that transformers has"),
        (config(quantization_config={"quant_method": "gptq"}), "quantized already", "weights they were made of"),
    ],
)
def test_broken_folders_name_the_folder_and_the_remedy(
    jobs: ModuleType, llama: Path, tmp_path: Path, change: Callable[[Path], None], says: str, remedy: str
) -> None:
    folder = shutil.copytree(llama, tmp_path / "given")
    change(folder)
    with pytest.raises(StageError) as caught:
        read(jobs, folder, tmp_path / "job")
    assert says in caught.value.what and str(folder) in str(caught.value) and remedy in (caught.value.hint or "")
    assert "trust_remote_code" not in str(caught.value)

"""Special tokens of learned tokenizers, and the new models that take their ids from them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from transformers import PreTrainedTokenizerFast

from infra.errors import ConfigError, StageError
from tasks.data.tokens.encoding import Encoder
from tasks.models.creation import new_model
from tasks.processors.tokenizer import Tokenizer, check_length, longest_text
from tasks.stages import tokenizer

ALL = {"mask_token": True, "cls_sep": True, "sentinels": 3, "special_tokens": ["<en>", "<de>"]}
NAMES = ["<|mask|>", "<|cls|>", "<|sep|>", "<extra_id_0>", "<extra_id_1>", "<extra_id_2>", "<en>", "<de>"]


def learned(jobs: ModuleType, inputs: Path, folder: Path, **params: Any) -> Path:
    given = tokenizer.Params.model_validate({"data": "d", "vocab_size": 500, **params})
    job = jobs.make_job(folder, given, {"data": jobs.artifact(inputs / "dataset", "dataset")})
    tokenizer.run(job)
    output: Path = job.output
    return output


@pytest.mark.parametrize("algorithm", ["bpe", "wordpiece", "unigram"])
def test_special_tokens_come_first_and_are_never_torn_apart(
    jobs: ModuleType, tiny_inputs: Path, tmp_path: Path, algorithm: str
) -> None:
    found = PreTrainedTokenizerFast.from_pretrained(learned(jobs, tiny_inputs, tmp_path, algorithm=algorithm, **ALL))
    first = 2 if algorithm == "bpe" else 3
    assert found.convert_ids_to_tokens(list(range(first, first + 8))) == NAMES and len(found) == 500
    assert (found.mask_token, found.cls_token, found.sep_token) == ("<|mask|>", "<|cls|>", "<|sep|>")
    ids = found("return <extra_id_1> self")["input_ids"]
    assert ids[0] == found.cls_token_id and ids[-1] == found.sep_token_id
    assert first + 4 in ids and ids.count(first + 1) == 1
    assert found.decode(ids, skip_special_tokens=True).split() == ["return", "self"]
    pair = found("a", "b", return_token_type_ids=True)
    assert pair["token_type_ids"][-2:] == [1, 1] and pair["token_type_ids"][0] == 0
    encoder = Encoder(found.backend_tokenizer)
    assert encoder.by_library(["return"]).ids.tolist() == ids[1:2] or algorithm != "wordpiece"
    if encoder.fast is not None:
        assert (
            encoder.by_fast(["return self", "<|mask|> x"]).ids.tolist()
            == encoder.by_library(["return self", "<|mask|> x"]).ids.tolist()
        ), "packed rows hold no classification tokens, whoever encodes them"


def test_without_options_a_tokenizer_has_none_of_them(jobs: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    folder = learned(jobs, tiny_inputs, tmp_path)
    state = json.loads((folder / "tokenizer.json").read_text())
    assert [t["content"] for t in state["added_tokens"]] == ["<|endoftext|>", "<|pad|>"]
    assert state["post_processor"] is None
    assert "mask_token" not in json.loads((folder / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"special_tokens": ["<en>", "<en>"]}, "'<en>' is there already"),
        ({"special_tokens": ["<|pad|>"]}, "is there already"),
        ({"sentinels": 1, "special_tokens": ["<extra_id_0>"]}, "is there already"),
        ({"special_tokens": [""]}, "at least 1 character"),
    ],
)
def test_tokens_that_are_there_twice_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        tokenizer.Params.model_validate({"data": "d", "vocab_size": 500, **given})


def test_a_given_tokenizer_gets_no_more_tokens() -> None:
    with pytest.raises(ValidationError, match="taken as it is"):
        tokenizer.Params(given="folder", mask_token=True)


@pytest.mark.parametrize("algorithm", ["bpe", "unigram"])
def test_a_vocabulary_too_small_for_them_is_refused(
    jobs: ModuleType, tiny_inputs: Path, tmp_path: Path, algorithm: str
) -> None:
    with pytest.raises(StageError, match=r"(?s)300 tokens do not hold the 5. special ones and 256 bytes.*more than"):
        learned(jobs, tiny_inputs, tmp_path, algorithm=algorithm, vocab_size=300, sentinels=50)


SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("AutoModelForMaskedLM", {}),
    "roberta": ("AutoModelForMaskedLM", {}),
    "ernie": ("AutoModelForMaskedLM", {}),
    "modernbert": ("AutoModelForMaskedLM", {}),
    "t5": ("AutoModelForSeq2SeqLM", {"decoder_start_token_id": "pad"}),
    "mt5": ("AutoModelForSeq2SeqLM", {"decoder_start_token_id": "pad"}),
    "bart": ("AutoModelForSeq2SeqLM", {"decoder_start_token_id": "eos", "forced_eos_token_id": "eos"}),
    "pegasus": ("AutoModelForSeq2SeqLM", {"decoder_start_token_id": "pad", "forced_eos_token_id": "eos"}),
}


@pytest.mark.parametrize("type", MODELS)
def test_a_new_model_takes_its_ids_from_the_tokenizer(tiny_inputs: Path, type: str) -> None:
    """Defaults of a type are the ids of another vocabulary: a decoder would begin with an ordinary token."""
    found = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer")
    auto, wanted = MODELS[type]
    model = new_model(auto, type, dict(SHAPE), Tokenizer(found, 512), where="model")
    ids = {"pad": found.pad_token_id, "eos": found.eos_token_id}
    assert (model.config.pad_token_id, model.config.vocab_size) == (0, len(found))
    for name, role in wanted.items():
        assert getattr(model.config, name) == ids[role] == getattr(model.generation_config, name)
    assert model.config.eos_token_id == 2
    if wanted:
        assert sum(isinstance(m, torch.nn.ModuleList) and len(m) > 1 for m in model.get_decoder().modules()) <= 1
        labels = torch.tensor([[7, 8, 2]])
        assert torch.isfinite(model(input_ids=torch.tensor([[5, 6, 2]]), labels=labels).loss)


@pytest.mark.parametrize(("type", "reads"), [("bert", 64), ("roberta", 63), ("gpt2", 64), ("bart", 64), ("t5", None)])
def test_how_long_a_text_a_model_reads(tiny: ModuleType, type: str, reads: int | None) -> None:
    """RoBERTa's table is used from behind the padding id on; a token more would end the training in a lookup."""
    objective = {"gpt2": "CausalLM", "bart": "Seq2SeqLM", "t5": "Seq2SeqLM"}.get(type, "MaskedLM")
    model = tiny.model(type, getattr(transformers, f"AutoModelFor{objective}"))
    assert longest_text(model) == reads
    decoder = {"decoder_input_ids": torch.ones(1, 2, dtype=torch.int64)} if objective == "Seq2SeqLM" else {}
    assert model(input_ids=torch.full((1, reads or 100), 5), **decoder).logits.isfinite().all()
    if reads is None:
        check_length(model, 10_000, where="x")
        return
    with pytest.raises((IndexError, RuntimeError)):
        model(input_ids=torch.full((1, reads + 1), 5), **decoder)
    with pytest.raises(StageError, match=f"texts of {reads} tokens, and these have up to 80") as caught:
        check_length(model, 80, where="stages.base.model")
    assert f"max_position_embeddings: {64 + 80 - reads}`" in str(caught.value)


def test_both_stacks_of_t5_are_as_deep_as_asked(tiny_inputs: Path) -> None:
    found = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer")
    fields = {**SHAPE, "num_hidden_layers": 3, "d_ff": 64, "d_kv": 16}
    model = new_model("AutoModelForSeq2SeqLM", "t5", fields, Tokenizer(found, 512), where="model")
    assert (len(model.encoder.block), len(model.decoder.block), model.config.num_decoder_layers) == (3, 3, 3)
    with pytest.raises(ConfigError, match="did you mean num_layers"):
        new_model("AutoModelForSeq2SeqLM", "t5", {"num_layer": 2}, Tokenizer(found, 512), where="model")

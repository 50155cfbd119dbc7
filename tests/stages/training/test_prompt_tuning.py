"""Prompt tuning: peft's loss curve, nothing moved but the prompt and the head, a plain model with its tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import processors
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

from infra.errors import StageError
from tasks.models.card import ModelCard, write_card
from tasks.models.loading import load_model
from tasks.objectives.text.text_classification import TextClassification
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stages import finetune
from tasks.training.engine.batch import BatchSplit
from tasks.training.loop.sampler import Sampler, stream_seed
from tasks.training.tuning.prompt_tuning import prompted_tokenizer

N, STEPS, LENGTH = 4, 6, 24
SEED_TEXT = "def return"


def base_of(tiny: ModuleType, tiny_inputs: Path, folder: Path, type: str = "llama") -> Path:
    tiny.model(type, AutoModelForCausalLM, vocabulary=tiny.VOCABULARY).save_pretrained(folder)
    for file in (tiny_inputs / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    write_card(folder, ModelCard(None, 32))
    return folder


def tuned(jobs: ModuleType, tiny_inputs: Path, base: Path, folder: Path, execution: Any = None, **given: Any) -> Any:
    settings = {
        "model": "base",
        "data": "data",
        "objective": "text_classification",
        "prompt": {"tokens": N, "text": SEED_TEXT},
        "max_length": LENGTH,
        "max_steps": STEPS,
        "global_batch_size": 8,
        "learning_rate": 3e-2,
        "schedule": {"name": "constant", "warmup_ratio": 0.0},
        "seed": 3,
    }
    made = finetune.Params.model_validate({**settings, **given})
    inputs = {"model": jobs.artifact(base, "model"), "data": jobs.artifact(tiny_inputs / "dataset", "dataset")}
    job = jobs.make_job(folder, made, inputs, execution=execution)
    job.metrics = finetune.STAGE.run(job)
    return job


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_learns_as_peft_does(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, type: str) -> None:
    """Rotary and learned positions: in both the prompt takes the first places, and the mean counts it."""
    base = base_of(tiny, tiny_inputs, tmp_path / "base", type)
    dropout = 0.0 if type == "gpt2" else None
    job = tuned(jobs, tiny_inputs, base, tmp_path / "job", dropout=dropout)
    found = [json.loads(line)["loss"] for line in (job.records / "train.jsonl").read_text().splitlines()]

    data, objective, tokenizer = (
        jobs.artifact(tiny_inputs / "dataset", "dataset"),
        TextClassification(),
        load_tokenizer(base),
    )
    assert tokenizer is not None
    torch.manual_seed(3)
    fields = dict.fromkeys(
        ("resid_pdrop", "embd_pdrop", "attn_pdrop", "classifier_dropout", "summary_first_dropout"), 0.0
    )
    plain = load_model(base, objective.auto_class, **objective.head(data), **(fields if type == "gpt2" else {}))
    plain.config.pad_token_id = 0
    config = peft.PromptTuningConfig(task_type="TOKEN_CLS", num_virtual_tokens=N, token_dim=32, num_layers=2)  # type: ignore[arg-type]
    theirs: Any = peft.get_peft_model(plain, config)
    ids = [tokenizer(SEED_TEXT)["input_ids"][i % len(tokenizer(SEED_TEXT)["input_ids"])] for i in range(N)]
    prompt = theirs.prompt_encoder["default"].embedding.weight
    prompt.data.copy_(plain.get_input_embeddings().weight[ids])
    learning = [p for p in theirs.parameters() if p.requires_grad]
    assert sum(p.numel() for p in learning) == N * 32 + 3 * 32 + 3
    groups = [
        {"params": [p for p in learning if (p.ndim >= 2) == matrix], "weight_decay": 0.01 * matrix} for matrix in (1, 0)
    ]
    optimizer = torch.optim.AdamW(groups, lr=3e-2)
    features = objective.bound(Tokenizer(tokenizer, LENGTH - N)).examples(data, "train")
    sampler, expected = Sampler(len(features), 3, BatchSplit(8, 1, 8)), []
    theirs.train()
    for step in range(STEPS):
        torch.manual_seed(stream_seed(3, 8 * step))  # these heads drop out a tenth, whatever the config says
        batch = objective.collate([features[i] for i in sampler.global_batch(step)])
        logits = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        longer = torch.nn.functional.pad(batch["attention_mask"], (N, 0), value=1)
        loss = objective.loss({"logits": logits}, {**batch, "attention_mask": longer})[0] / 8
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        expected.append(float(loss.detach()))
    assert found == pytest.approx(expected, abs=2e-5)
    assert expected[-1] != expected[0]
    rows = dict(load_file(job.output / "model.safetensors"))
    name = next(n for n in rows if n.endswith(("embed_tokens.weight", "wte.weight")))
    torch.testing.assert_close(rows[name][-N:], prompt.detach(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("execution", [{}, *({"zero_stage": z, "offload_optimizer": True} for z in (2, 3))])
def test_nothing_moves_but_the_prompt_and_the_head(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, execution: dict[str, Any]
) -> None:
    base = base_of(tiny, tiny_inputs, tmp_path / "base")
    given = {"optimizer": {"weight_decay": 0.5}, "prompt": {"tokens": N}}
    job = tuned(jobs, tiny_inputs, base, tmp_path / "job", execution, **given)
    before, after = load_file(base / "model.safetensors"), load_file(job.output / "model.safetensors")
    head = {"score.weight", "score.bias"}
    for name in after.keys() - head:
        rows = len(before[name])
        assert torch.equal(after[name][:rows], before[name]), name
    table = after["model.embed_tokens.weight"]
    assert len(table) == tiny.VOCABULARY + N
    drawn = torch.cdist(table[-N:], before["model.embed_tokens.weight"]).min(1).values
    assert bool((drawn > 1e-4).all()), "no word is what it began as"


def test_what_ships_is_a_plain_model_that_puts_the_prompt_before_a_text(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    """Stock transformers, with the files alone, says what validation measured."""
    job = tuned(jobs, tiny_inputs, base_of(tiny, tiny_inputs, tmp_path / "base"), tmp_path / "job")
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    model = AutoModelForTokenClassification.from_pretrained(job.output)
    first = tiny.VOCABULARY
    ids = tokenizer("def f(x): return x", truncation=True, max_length=8)["input_ids"]
    assert ids[:N] == list(range(first, first + N)) and len(ids) == 8 and max(ids[N:]) < first
    objective, data = TextClassification(), jobs.artifact(tiny_inputs / "dataset", "dataset")
    heldout = objective.bound(Tokenizer(load_tokenizer(job.output), LENGTH)).examples(data, "validation")
    total = 0.0
    for feature in heldout:
        assert (
            feature["input_ids"][:N].tolist() == list(range(first, first + N)) and len(feature["input_ids"]) <= LENGTH
        )
        with torch.no_grad():
            logits = model(torch.as_tensor(np.int64(feature["input_ids"]))[None]).logits.mean(1)
        total += float(torch.nn.functional.cross_entropy(logits, torch.tensor([feature["label"]])))
    assert total / len(heldout) == pytest.approx(job.metrics["validation_loss"], abs=1e-5)
    samples = json.loads((job.records / "samples.json").read_text())
    assert samples and "<prompt" not in str(samples), "people read the text"


def test_the_stages_that_follow_read_it_like_any_model(
    jobs: ModuleType, tiny: ModuleType, whole_way: ModuleType, tiny_inputs: Path, tmp_path: Path
) -> None:
    base = base_of(tiny, tiny_inputs, tmp_path / "base")
    budget = {"max_steps": 4, "learning_rate": 1e-2}
    found = whole_way.go(
        jobs,
        tmp_path / "way",
        {"name": "text_classification"},
        base,
        tiny_inputs / "dataset",
        finetune={"prompt": {"tokens": N}, **budget},
        distill=budget,
        require=[{"metric": "accuracy", "max_drop": 1.0}],
    )
    assert set(found["scores"]["models"]) == {"teacher", "student", "onnx", "int8"}


# --- where the prompt stands ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processor", "single", "pair"),
    [
        (None, "p p A", "p p A B"),
        (processors.ByteLevel(trim_offsets=False), "p p A", "p p A B"),
        (processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2)), "[CLS] p p A [SEP]", "[CLS] p p A [SEP] B [SEP]"),
        (
            processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2)),
            "[CLS] p p A [SEP]",
            "[CLS] p p A [SEP] [SEP] B [SEP]",
        ),
        (
            processors.TemplateProcessing("$A [SEP]", "$A [SEP] $B [SEP]", special_tokens=[("[SEP]", 3)]),
            "p p A [SEP]",
            "p p A [SEP] B [SEP]",
        ),
        (
            processors.Sequence(
                [
                    processors.ByteLevel(trim_offsets=False),
                    processors.TemplateProcessing("[CLS] $A", "[CLS] $A $B", special_tokens=[("[CLS]", 2)]),
                ]
            ),
            "[CLS] p p A",
            "[CLS] p p A B",
        ),
    ],
    ids=["none", "byte level", "bert", "roberta", "t5", "llama"],
)
def test_the_prompt_stands_before_the_text_and_behind_a_first_mark(
    tiny: ModuleType, tmp_path: Path, processor: Any, single: str, pair: str
) -> None:
    made = tiny.word_tokenizer(["A", "B"])
    made.backend_tokenizer.post_processor = processor
    before = {text: made(*text, return_token_type_ids=True) for text in (("A",), ("A", "B"))}
    made.save_pretrained(tmp_path / "plain")
    prompted = prompted_tokenizer(tmp_path / "plain", 2, tmp_path / "prompted")
    for text, expected in ((("A",), single), (("A", "B"), pair)):
        found = prompted(*text, return_token_type_ids=True)
        tokens = prompted.convert_ids_to_tokens(found["input_ids"])
        assert " ".join("p" if token.startswith("<prompt_") else token for token in tokens) == expected
        rest = [i for i, token in enumerate(tokens) if not token.startswith("<prompt_")]
        for name in ("input_ids", "token_type_ids"):
            assert [found[name][i] for i in rest] == before[text][name], "all else is as it was"


@pytest.mark.parametrize("type", ["bert", "roberta", "t5"])
def test_other_families_learn_one_as_well(
    jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path, type: str
) -> None:
    base = tmp_path / "base"
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    tiny.write_model(base, tiny.model(type, AutoModel, vocabulary=tiny.VOCABULARY), tokenizer, 32)
    job = tuned(jobs, tiny_inputs, base, tmp_path / "job")
    before, after = load_file(base / "model.safetensors"), load_file(job.output / "model.safetensors")
    moved = {
        name
        for name, value in after.items()
        if (own := before.get(name.partition(".")[2], before.get(name))) is not None
        and not torch.equal(value[: len(own)], own)
    }
    assert moved == set(), "the rows of the prompt are new ones"
    table = next(v for n, v in after.items() if n.endswith(("word_embeddings.weight", "shared.weight")))
    assert bool((torch.cdist(table[-N:], table[:-N]).min(1).values > 1e-3).all()), "they learned"


# --- what cannot be asked for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"lora": {}}, "`lora` has nothing to act on"),
        ({"freeze": {"all_but_last": 1}}, "`freeze` has nothing to act on"),
        ({"layer_decay": 0.9}, "`layer_decay` has nothing to act on"),
        ({"init": "random"}, "makes one that knows nothing"),
    ],
)
def test_what_does_not_go_with_a_prompt_is_refused(
    jobs: ModuleType, tiny_inputs: Path, tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        tuned(jobs, tiny_inputs, tmp_path, tmp_path / "job", **given)


def test_a_prompt_needs_room_and_a_head(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    base = base_of(tiny, tiny_inputs, tmp_path / "base")
    with pytest.raises(StageError, match="take 4 of 4 tokens: no room for a text"):
        tuned(jobs, tiny_inputs, base, tmp_path / "short", max_length=N)
    with pytest.raises(StageError, match="LlamaForCausalLM says words"):
        tuned(jobs, tiny_inputs, base, tmp_path / "lm", objective="causal_lm")

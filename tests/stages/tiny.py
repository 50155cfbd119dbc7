"""Models and inputs small enough that a stage takes a second: functions of three standard-library packages."""

from __future__ import annotations

import ast
import json
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from tasks.data.tokens.packing import best_fit, one_to_a_row, save_plan
from tasks.models.card import ModelCard, write_card
from tasks.models.inputs import model_inputs
from tasks.stage import stages
from tasks.training.loop.sampler import stream_seed

PACKAGES = ("json", "logging", "wsgiref")
CONTEXT = 32
VOCABULARY = 320

FIELDS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 64, "initializer_range": 0.1},
    "gpt2": {"n_inner": 64, "initializer_range": 0.1},
    "bert": {"intermediate_size": 64},
    "roberta": {"intermediate_size": 64, "type_vocab_size": 1},
    "ernie": {"intermediate_size": 64},
    "t5": {"d_kv": 16, "d_ff": 64, "decoder_start_token_id": 0},
    "bart": {
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "decoder_attention_heads": 2,
        "decoder_start_token_id": 2,
        "init_std": 0.1,
    },
}


def model(
    type: str = "llama", auto: Any = AutoModelForCausalLM, *, layers: int = 2, vocabulary: int = 50, **fields: Any
) -> PreTrainedModel:
    """Hidden size 32, 2 heads; the same weights whenever the arguments are the same."""
    torch.manual_seed(0)
    given = {
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **({"decoder_layers": layers} if type == "bart" else {}),
        **({"num_layers": layers} if type == "t5" else {}),
        **FIELDS[type],
        **fields,
    }
    made: PreTrainedModel = auto.from_config(AutoConfig.for_model(type, **given))
    return made.train(False)


def lm_features(count: int, *, vocabulary: int = 50, shortest: int = 4, longest: int = 16) -> list[dict[str, Any]]:
    """Token rows of unequal lengths, each counting upwards from a random token."""
    random = np.random.default_rng(0)
    lengths = random.integers(shortest, longest + 1, count)
    starts = random.integers(3, vocabulary, count)
    return [{"input_ids": (s - 3 + np.arange(n)) % (vocabulary - 3) + 3} for s, n in zip(starts, lengths, strict=True)]


def plain_training(
    model: PreTrainedModel,
    objective: Any,
    features: Sequence[Mapping[str, Any]],
    batches: Sequence[Sequence[int]],
    rate: Callable[[int], float],
    *,
    weight_decay: float,
    max_grad_norm: float,
    mean_loss: Callable[[PreTrainedModel, Any, Any], torch.Tensor] | None = None,
) -> list[float]:
    """The reference: whole global batches in a bare torch loop, mean loss over units. Returns the losses.

    mean_loss: the loss of a step's examples, given also as a batch, where it is not the objective's own.
    """
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0}]
    )
    losses = []
    model.train()
    for step, batch in enumerate(batches):
        chosen = [features[i] for i in batch]
        data = objective.collate(chosen)
        if mean_loss is None:
            total, units = objective.loss(objective.read(model(**model_inputs(data, model))), data)
            loss = total / units
        else:
            loss = mean_loss(model, chosen, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


class OwnLoss:
    """For `plain_training`: an objective's batches with the loss of the model itself, which shifts and averages alone.

    Noise is drawn as for a training with that seed which begins at the beginning of the data stream.
    """

    def __init__(self, model: PreTrainedModel, objective: Any, seed: int) -> None:
        self.model, self.objective, self.seed, self.place = model, objective, seed, 0

    def collate(self, features: Sequence[Mapping[str, Any]]) -> Any:
        places = range(self.place, self.place + len(features))
        self.place += len(features)
        drawn = [self.objective.noised(f, stream_seed(self.seed, i)) for f, i in zip(features, places, strict=True)]
        return self.objective.bound(config=self.model.config).collate(drawn)

    def read(self, output: Any) -> Any:
        return {"logits": output.logits}

    def loss(self, outputs: Any, batch: Any) -> tuple[torch.Tensor, int]:
        units = self.objective.units(batch)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
        return self.model(**inputs).loss * units, units


def functions() -> list[tuple[str, str, str]]:
    """(id, text, package) of the functions of three small packages of the running Python."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for package in PACKAGES:
        for path in sorted((root / package).glob("*.py")):
            source = path.read_text(encoding="utf-8")
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    text = ast.get_source_segment(source, node) or ""
                    found.append((f"{package}/{path.name}::{node.name}:{node.lineno}", text, package))
    return found


def write_dataset(folder: Path, splits: Mapping[str, Mapping[str, Sequence[Any]]]) -> Path:
    """A `dataset` without labels; each split's columns are `text` and any others."""
    for split, columns in splits.items():
        (folder / split).mkdir(parents=True)
        names = [f"{split}/{i}" for i in range(len(columns["text"]))]
        pq.write_table(pa.table({"id": names, "group": names, **columns}), folder / split / "0.parquet")
    sizes = {split: len(columns["text"]) for split, columns in splits.items()}
    (folder / "dataset.json").write_text(json.dumps({"splits": sizes, "labels": None}))
    return folder


def write_inputs(folder: Path, special: Mapping[str, str] | None = None, more: Sequence[str] = ()) -> Path:
    """`dataset/`, `tokenizer/` and `tokens/` as the data stages lay them out.

    special: further special tokens of the tokenizer, by the role transformers has for them; more: those without one.
    """
    rows = functions()
    splits = {"train": [r for i, r in enumerate(rows) if i % 5 > 1], "validation": rows[::5], "test": rows[1::5]}
    for split, part in splits.items():
        (folder / "dataset" / split).mkdir(parents=True)
        columns = {"id": [r[0] for r in part], "text": [r[1] for r in part], "group": [r[0] for r in part]}
        pq.write_table(pa.table({**columns, "label": [r[2] for r in part]}), folder / "dataset" / split / "0.parquet")
    sizes = {split: len(part) for split, part in splits.items()}
    (folder / "dataset/dataset.json").write_text(
        json.dumps({"splits": sizes, "labels": list(PACKAGES), "columns": ["id", "text", "group", "label"]})
    )

    special = special or {}
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<bos>", "<eos>", "<unk>", *special.values(), *more],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    raw.train_from_iterator([r[1] for r in splits["train"]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", **special
    )
    tokens = folder / "tokens"
    for place in (folder / "tokenizer", tokens / "tokenizer"):
        tokenizer.save_pretrained(place)
    counts = {}
    for split, part in splits.items():
        documents = [[*tokenizer(row[1])["input_ids"], tokenizer.eos_token_id] for row in part]
        lengths = np.array([len(document) for document in documents], np.int64)
        (tokens / split).mkdir()
        ids = np.concatenate(documents).astype(np.uint16)
        save_file({"ids": ids, "lengths": lengths}, tokens / split / "0.safetensors")
        plan = (best_fit if split == "train" else one_to_a_row)(lengths, CONTEXT)
        save_plan(plan, [lengths], tokens / f"{split}.rows.safetensors")
        counts[split] = plan.rows
    (tokens / "tokens.json").write_text(
        json.dumps({"context": CONTEXT, "vocab_size": len(tokenizer), "splits": counts})
    )
    return folder


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """WordPiece as BERT has it ([CLS] a [SEP] b [SEP]), lower-casing nothing: these words whole, others in letters."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{c}" for c in letters), *sorted(set(words))]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    raw = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    raw.decoder = decoders.WordPiece()
    raw.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def write_rows(folder: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]], **described: Any) -> Path:
    """A `dataset` artifact of these rows, in a new folder; what is no string is stored as JSON, as `json` columns are."""
    for split, rows in splits.items():
        (folder / split).mkdir(parents=True)
        columns: dict[str, list[Any]] = {
            "id": [f"{split}#{i}" for i in range(len(rows))],
            "text": [row.get("text") for row in rows],
            "group": [f"{split}#{i}" for i in range(len(rows))],
        }
        for name in sorted({name for row in rows for name in row} - {"text"}):
            values = [row.get(name) for row in rows]
            columns[name] = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        pq.write_table(pa.table(columns), folder / split / "0.parquet")
    sizes = {split: len(rows) for split, rows in splits.items()}
    (folder / "dataset.json").write_text(json.dumps({"splits": sizes, "labels": None, **described}))
    return folder


def write_model(folder: Path, made: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Path:
    """A `model` artifact of weights that were trained for nothing yet."""
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_card(folder, ModelCard(None, max_length))
    return folder


def stage_chain(
    jobs: Any, folder: Path, model: Path, data: Path, *, finetune: Mapping[str, Any], distill: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """finetune -> distill -> export -> quantize -> evaluate of all on `test`, and prune; each stage's metrics by kind."""
    source = jobs.artifact(data, "dataset", stage="data")
    found: dict[str, dict[str, float]] = {}

    def run(kind: str, given: Mapping[str, Any], **inputs: Any) -> Any:
        stage = stages()[kind]
        job = jobs.make_job(folder / kind, stage.params.model_validate(given), inputs, name=kind)
        found[kind] = stage.run(job)
        return jobs.artifact(job.output, stage.makes, stage=kind)

    teacher = run("finetune", {"model": "m", "data": "d", **finetune}, model=jobs.artifact(model, "model"), data=source)
    run("prune", {"model": "t", "data": "d", "keep": 0.75, "samples": 40}, model=teacher, data=source)
    student = run("distill", {"teacher": "t", "data": "d", **distill}, teacher=teacher, data=source)
    onnx = run("export", {"model": "m"}, model=student)
    int8 = run("quantize", {"model": "m"}, model=onnx)
    run(
        "evaluate",
        {"models": ["a"], "data": "d", "resamples": 100, "latency": {"repeats": 2}},
        models=[teacher, student, onnx, int8],
        data=source,
    )
    return found

"""Every family of models in every stage that takes a model apart: cut layers, narrower layers, graphs, eight bits."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers

from infra.errors import StageError
from tasks.compression.distillation.student import student_from
from tasks.compression.onnx.export import export_onnx, largest_difference
from tasks.compression.pruning.ffn_width import find_feed_forwards, neuron_importance, pruned
from tasks.compression.quantization.int8 import quantize_dynamic_int8
from tasks.models.inputs import model_inputs
from tasks.models.runtime import OnnxRuntime
from tasks.models.structure.transformer import layer_stacks
from tasks.objective import Objective, objective
from tasks.objectives.text.inputs.vocabulary import Vocabulary
from tasks.processors.token_probes import random_batches
from tasks.processors.tokenizer import Tokenizer

V = 50
VOCABULARY = Vocabulary(V, np.arange(V) < 4, 3, 2, np.arange(V - 8, V))


class Case(NamedTuple):
    """A model and what it is trained for."""

    type: str
    objective: str
    fields: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return "-".join([self.type, self.objective, *map(str, self.fields.values())])

    def parts(self, tiny: ModuleType, layers: int = 2) -> tuple[Any, Objective]:
        chosen = objective(self.objective)
        auto = getattr(transformers, chosen.auto_class)
        made = tiny.model(self.type, auto, layers=layers, vocabulary=V, **self.fields)
        # Fresh biases are zeros and fresh norms ones: what loses them would go unseen.
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        return made, chosen


GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
CASES = [
    *(Case(type, "masked_lm") for type in ("bert", "roberta", "ernie")),
    *(Case(type, "causal_lm") for type in ("gpt2", "llama")),
    *(Case(type, "text_classification") for type in ("bert", "roberta", "ernie", "gpt2", "llama")),
    Case("t5", "seq2seq"),
    Case("t5", "seq2seq", GATED),
    Case("bart", "seq2seq"),
]
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
encoder_decoders = pytest.mark.parametrize("case", CASES[-3:], ids=lambda case: case.name)


def batch_of(tiny: ModuleType, chosen: Objective) -> dict[str, torch.Tensor]:
    features = [
        {**row, "label": i % 2, "target_ids": np.append(row["input_ids"][::-1], 2), "vocabulary": VOCABULARY}
        for i, row in enumerate(tiny.lm_features(5, longest=9))
    ]
    return chosen.collate([chosen.noised(f, i) for i, f in enumerate(features)])


def logits(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        output = model.train(False)(**model_inputs(batch, model)).logits
    assert isinstance(output, torch.Tensor)
    return output


@cases
def test_a_student_is_its_teacher_where_nothing_is_cut_and_shallower_where_it_is(
    tiny: ModuleType, tmp_path: Path, case: Case
) -> None:
    teacher, chosen = case.parts(tiny, layers=3)
    batch = batch_of(tiny, chosen)
    torch.testing.assert_close(logits(student_from(teacher, 3), batch), logits(teacher, batch), atol=0, rtol=0)
    student = student_from(teacher, 1)
    for (name, before), (_, after) in zip(layer_stacks(teacher), layer_stacks(student), strict=True):
        assert len(after) == 1, name
        # Only what later layers do not have themselves is the first layer's.
        kept = dict(before[2].named_parameters())
        for key, value in after[0].named_parameters():
            assert torch.equal(value, kept.get(key, before[0].state_dict().get(key))), key
    assert len(layer_stacks(student)) == (2 if case in CASES[-3:] else 1)
    student.save_pretrained(tmp_path)
    again = type(student).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(student, batch), atol=0, rtol=0)


@cases
def test_silent_neurons_can_go_and_no_others_are_told_to_be_silent(
    tiny: ModuleType, tmp_path: Path, case: Case
) -> None:
    """Half the neurons of each block, other ones in each, are silenced: measured as such, dropped without a trace."""
    model, chosen = case.parts(tiny)
    batch, modules = batch_of(tiny, chosen), dict(model.named_modules())
    blocks = find_feed_forwards(model)
    assert len(blocks) == 2 * len(layer_stacks(model))
    silenced = []
    for number, block in enumerate(blocks):
        silent = torch.randperm(64, generator=torch.Generator().manual_seed(number))[:32]
        weight = modules[block.outward].weight
        with torch.no_grad():
            (weight if weight.shape[0] == 64 else weight.T)[silent] = 0
        silenced.append(set(silent.tolist()))
    scores = neuron_importance(model, [batch], chosen)
    for score, silent in zip(scores, silenced, strict=True):
        quiet = torch.tensor([n in silent for n in range(64)])
        # relu blocks have neurons that never fire on so little text.
        assert (score[quiet] == 0).all() and (score[~quiet] > 0).float().mean() > 0.4
        score[~quiet] += 1.0
    smaller = pruned(model, scores, 0.5)
    torch.testing.assert_close(logits(smaller, batch), logits(model, batch), atol=1e-5, rtol=0)
    smaller.save_pretrained(tmp_path)
    again = type(smaller).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(again, batch), logits(smaller, batch), atol=0, rtol=0)
    assert smaller.num_parameters() < model.num_parameters()
    config = json.loads((tmp_path / "config.json").read_text())
    assert {config[block.field] for block in blocks} == {32}


# Two seconds a graph and more: decoders alone are in test_export_quantize, plain T5 in test_objective_seq2seq.
GRAPHS = [c for c in CASES if c.objective == "masked_lm" or c.type == "bart" or c.fields]


@pytest.mark.parametrize("case", GRAPHS, ids=lambda case: case.name)
def test_a_graph_equals_its_model_and_eight_bits_come_close(tiny: ModuleType, tmp_path: Path, case: Case) -> None:
    model, chosen = case.parts(tiny, layers=1)
    export_onnx(model, chosen.bound(Tokenizer(None, 24)), tmp_path / "model.onnx")
    assert largest_difference(model, chosen.bound(Tokenizer(None, 24)), tmp_path / "model.onnx") < 1e-4
    (tmp_path / "int8").mkdir()
    quantize_dynamic_int8(tmp_path / "model.onnx", tmp_path / "int8/model.onnx", per_channel=False, reduce_range=False)
    full, small = OnnxRuntime(tmp_path, 1), OnnxRuntime(tmp_path / "int8", 1)
    assert full.names == list(chosen.inputs)
    # Sizes that neither the trace nor the proof used, the two sides of an encoder-decoder apart.
    for batch in random_batches(model.config, full.names, 24, seed=9, shapes=[(3, 11), (7, 2)]):
        expected = model(**model_inputs({k: torch.from_numpy(v) for k, v in batch.items()}, model)).logits
        real = batch["attention_mask"] == 1 if len(full.names) == 2 else slice(None)
        truth, given, rough = (
            a[real] for a in (expected.detach().numpy(), full.outputs(batch)["logits"], small.outputs(batch)["logits"])
        )
        np.testing.assert_allclose(given, truth, atol=1e-4)
        assert 0 < np.abs(rough - truth).max() < 0.25 * np.abs(truth).max()


@encoder_decoders
def test_stacks_of_unequal_depth(tiny: ModuleType, case: Case) -> None:
    decoder = {"t5": "num_decoder_layers", "bart": "decoder_layers"}[case.type]
    teacher, chosen = case._replace(fields={**case.fields, decoder: 1}).parts(tiny, layers=3)
    batch = batch_of(tiny, chosen)
    torch.testing.assert_close(logits(student_from(teacher, 3), batch), logits(teacher, batch), atol=0, rtol=0)
    student = student_from(teacher, 2)
    assert [len(stack) for _, stack in layer_stacks(student)] == [2, 1]
    assert torch.isfinite(logits(student, batch)).all()
    with pytest.raises(StageError, match="student of 4 layers cannot be cut from a teacher of 3"):
        student_from(teacher, 4)

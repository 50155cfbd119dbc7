"""Structured pruning: exact where the removed neurons did nothing, importance against its definition, real shrinkage."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

from infra.errors import StageError
from tasks.compression.ffn_pruning import find_feed_forwards, neuron_importance, pruned
from tasks.objectives import SpecialIds
from tasks.objectives.causal_lm import CausalLM


def tiny_of(tiny: ModuleType, type: str, **fields: Any) -> Any:
    auto = AutoModelForTokenClassification if type == "bert" else AutoModelForCausalLM
    return tiny.model(type, auto, **fields)


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert"])
def test_removing_neurons_that_do_nothing_changes_nothing(tiny: ModuleType, type: str, tmp_path: Path) -> None:
    """Half the neurons of each layer, other ones in each, are silenced going out; dropping them must be exact."""
    model = tiny_of(tiny, type)
    modules, scores = dict(model.named_modules()), []
    for layer, block in enumerate(find_feed_forwards(model)):
        silent = torch.randperm(64, generator=torch.Generator().manual_seed(layer))[:32]
        weight = modules[block.outward].weight
        with torch.no_grad():
            # Conv1D stores [in, out], nn.Linear [out, in].
            (weight if type == "gpt2" else weight.T)[silent] = 0
        score = torch.ones(64)
        score[silent] = 0
        scores.append(score)
    smaller = pruned(model, scores, 0.5)
    smaller.save_pretrained(tmp_path)
    again = type_auto(type).from_pretrained(tmp_path)
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        torch.testing.assert_close(again.train(False)(input_ids=ids).logits, expected, atol=1e-5, rtol=0)
    count = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in again.parameters())
    weights = {"llama": 3 * 32, "gpt2": 2 * 32 + 1, "bert": 2 * 32 + 1}[type]
    assert count == 2 * 32 * weights


def type_auto(type: str) -> Any:
    return AutoModelForTokenClassification if type == "bert" else AutoModelForCausalLM


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_importance_is_the_squared_slope_of_the_loss_in_a_gate_on_the_neuron(tiny: ModuleType, type: str) -> None:
    """Against finite differences: scale one neuron's outgoing weights by 1 +- h and watch each example's loss."""
    model = tiny_of(tiny, type)
    batches = [CausalLM().collate([feature], SpecialIds()) for feature in tiny.lm_features(3)]
    together = [CausalLM().collate(tiny.lm_features(3), SpecialIds())]

    def loss(logits: torch.Tensor, batch: Any) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
        )

    found = neuron_importance(model, together, CausalLM())
    modules, h = dict(model.named_modules()), 1e-2
    for layer, block in enumerate(find_feed_forwards(model)):
        weight = modules[block.outward].weight
        for neuron in (0, 17, 63):
            view = weight[neuron] if type == "gpt2" else weight[:, neuron]
            total = 0.0
            for batch in batches:
                values = []
                for sign in (1, -1):
                    with torch.no_grad():
                        view.mul_(1 + sign * h)
                        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
                        values.append(float(loss(model(**inputs).logits, batch)))
                        view.div_(1 + sign * h)
                total += ((values[0] - values[1]) / (2 * h)) ** 2
            assert float(found[layer][neuron]) == pytest.approx(total, rel=2e-2, abs=1e-5)


def test_a_width_equal_to_the_hidden_size_is_still_found(tiny: ModuleType) -> None:
    """Shapes alone cannot tell such a block's projections from attention's."""
    model = tiny_of(tiny, "llama", intermediate_size=32)
    block = find_feed_forwards(model)[1]
    assert block.outward.endswith("mlp.down_proj")
    assert sorted(name.rpartition(".")[2] for name in block.inward) == ["gate_proj", "up_proj"]


def test_a_share_that_removes_nothing_is_refused(tiny: ModuleType) -> None:
    model = tiny_of(tiny, "llama")
    with pytest.raises(StageError, match="leaves all 64 neurons"):
        pruned(model, [torch.ones(64), torch.ones(64)], 0.98)

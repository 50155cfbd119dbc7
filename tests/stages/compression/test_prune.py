"""Structured pruning: exact where the removed neurons did nothing, importance against its definition, real shrinkage."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForTokenClassification,
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
)

from infra.errors import StageError
from tasks.compression.pruning.ffn_width import find_feed_forwards, neuron_importance, pruned
from tasks.compression.pruning.heads import head_importance, without_heads
from tasks.compression.pruning.layers import layer_importance, without_layers
from tasks.models.structure.layer_subset import with_layers
from tasks.objectives.text.causal_lm import CausalLM


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
    batches = [CausalLM().collate([feature]) for feature in tiny.lm_features(3)]
    together = [CausalLM().collate(tiny.lm_features(3))]

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


@pytest.mark.parametrize("type", ["llama", "gpt2", "bert"])
def test_a_layers_importance_is_what_the_loss_rises_by_without_it(tiny: ModuleType, type: str) -> None:
    """Against the model that really has only the other layers."""
    auto = AutoModelForTokenClassification if type == "bert" else AutoModelForCausalLM
    model = tiny.model(type, auto, layers=3, **({"num_labels": 50} if type == "bert" else {}))
    batches = [CausalLM().collate(tiny.lm_features(6))]

    def loss(network: Any) -> float:
        inputs = {name: batches[0][name] for name in ("input_ids", "attention_mask")}
        with torch.no_grad():
            total, units = CausalLM().loss({"logits": network(**inputs).logits}, batches[0])
        return float(total) / units

    (found,) = layer_importance(model, batches, CausalLM())
    for gone, rise in enumerate(found):
        rest = with_layers(model, [[layer for layer in range(3) if layer != gone]]).train(False)
        assert rise == pytest.approx(loss(rest) - loss(model), abs=1e-5)


def test_the_layer_that_does_nothing_leaves_and_nothing_changes(tiny: ModuleType, tmp_path: Path) -> None:
    model = tiny.model("llama", layers=3)
    with torch.no_grad():
        for part in (model.model.layers[1].self_attn.o_proj, model.model.layers[1].mlp.down_proj):
            part.weight.zero_()
    batches = [CausalLM().collate(tiny.lm_features(6))]
    importance = layer_importance(model, batches, CausalLM())
    without_layers(model, importance, 0.67).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == 2 and importance[0][1] == pytest.approx(0.0, abs=1e-6)
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=0)
    with pytest.raises(StageError, match="leaves all 3 layers"):
        without_layers(model, importance, 0.9)


@pytest.mark.parametrize("kv", [4, 2], ids=["a key for each head", "a key for two heads"])
def test_heads_that_say_nothing_leave_and_nothing_changes(tiny: ModuleType, tmp_path: Path, kv: int) -> None:
    """Other groups in each layer; what is left loads as a plain model of its own config, which wants 1, 2 or 4 heads."""
    model = tiny.model("llama", num_attention_heads=4, num_key_value_heads=kv, head_dim=8, attention_bias=True)
    width, silent = 32 // kv, [list(range(kv // 2)), list(range(kv // 2, kv))]
    with torch.no_grad():
        for layer, groups in zip(model.model.layers, silent, strict=True):
            for group in groups:
                layer.self_attn.o_proj.weight[:, group * width : (group + 1) * width] = 0
    batches = [CausalLM().collate(tiny.lm_features(6))]
    importance = head_importance(model, batches, CausalLM())
    assert [sorted(score.argsort()[: kv // 2].tolist()) for score in importance] == silent
    without_heads(model, importance, 0.5 if kv == 2 else 0.75).save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.config.num_key_value_heads == kv // 2 and again.config.num_attention_heads == 2
    ids = torch.randint(3, 50, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-5, rtol=0)
    assert again.num_parameters() < model.num_parameters()
    with pytest.raises(StageError, match=f"leaves all {kv} groups of heads"):
        without_heads(model, importance, 0.99)


@pytest.mark.parametrize("type", ["gpt2", "bert"])
def test_heads_of_a_family_whose_config_cannot_say_so_are_refused(tiny: ModuleType, type: str) -> None:
    with pytest.raises(StageError, match="its config does not say how wide they are"):
        head_importance(tiny_of(tiny, type), [], CausalLM())


def test_layers_that_share_their_weights_are_refused() -> None:
    config = AlbertConfig(
        vocab_size=50,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
    )
    with pytest.raises(StageError, match="is its stack of 3 layers") as refused:
        find_feed_forwards(AlbertForTokenClassification(config))
    assert "the same weights over and over (ALBERT)" in str(refused.value)

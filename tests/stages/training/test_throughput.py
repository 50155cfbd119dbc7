"""What a training says of the machine it runs on."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tasks.objectives.text.causal_lm import CausalLM
from tasks.training.loop.throughput import ModelFlops, matrix_flops
from tasks.training.loop.train import train
from tasks.training.settings import TrainingParams


def counted(model: torch.nn.Module, length: int) -> float:
    """Operations of one forward pass over one sequence, counted by torch as it runs them."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.ones(1, length, dtype=torch.int64), use_cache=False)
    return float(counter.get_total_flops())


@pytest.mark.parametrize("tied", [False, True])
def test_the_formula_counts_what_torch_counts(tied: bool) -> None:
    """A backward pass costs twice the forward pass, so a training step is three times what the counter sees."""
    config = AutoConfig.for_model(
        "llama",
        vocab_size=512,
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        tie_word_embeddings=tied,
        attn_implementation="eager",
    )
    model, length = AutoModelForCausalLM.from_config(config), 128
    flops = ModelFlops.of_tokens(model)
    assert flops is not None
    assert flops.per_unit(length) * length == pytest.approx(3 * counted(model, length), rel=0.01)


def test_a_step_records_its_share_of_the_machine(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    params = TrainingParams(max_steps=4, global_batch_size=8)
    train(jobs.make_job(tmp_path, params), tiny.model(), CausalLM(), tiny.lm_features(40), [], params)
    for line in (tmp_path / "records/train.jsonl").read_text().splitlines():
        entry = json.loads(line)
        assert 0 < entry["mfu"] < 1 and entry["memory_mb"] > 50


def test_a_product_of_matrices_is_timed_in_operations_a_second() -> None:
    device = torch.device("cpu")
    assert 1e8 < matrix_flops(device, torch.float32) < 1e14

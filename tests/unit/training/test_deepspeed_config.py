"""The DeepSpeed config made from a pipeline and whatever is passed through; nothing here needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from infra.errors import ConfigError, StageError
from infra.execution import Execution
from tasks.pipeline.load import load_pipeline
from tasks.training.engine.batch import BatchSplit
from tasks.training.engine.deepspeed_config import deepspeed_config, zero_stage


def config(**execution: Any) -> dict[str, Any]:
    return deepspeed_config(Execution.model_validate(execution), BatchSplit(16, 2, 4), 1.0)


def test_the_split_reaches_deepspeed() -> None:
    made = config(zero_stage=2)
    assert made["train_batch_size"] == 16
    assert made["train_micro_batch_size_per_gpu"] == 4
    assert made["gradient_accumulation_steps"] == 2
    assert made["zero_optimization"] == {"stage": 2}
    assert made["gradient_clipping"] == 1.0


def test_settings_inside_zero_pass_through() -> None:
    made = config(zero_stage=2, deepspeed={"zero_optimization": {"reduce_bucket_size": 1000}})
    assert made["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ({"zero_optimisation": {}}, "did you mean zero_optimization"),
        ({"train_batch_size": 8}, "global_batch_size"),
        ({"optimizer": {"type": "Adam"}}, "learning_rate"),
        ({"zero_optimization": {"stage": 1}}, "1 contradicts execution.zero_stage, which makes it 0"),
    ],
)
def test_keys_that_deepspeed_would_ignore_or_that_contradict_are_refused(extra: dict[str, Any], says: str) -> None:
    with pytest.raises(StageError, match=r"execution\.deepspeed") as caught:
        config(deepspeed=extra)
    assert says in str(caught.value)


def test_fp16_is_refused_with_a_way_out() -> None:
    with pytest.raises(StageError, match="bf16"):
        config(precision="fp16")


# As people write it for Hugging Face's Trainer.
TRAINER_STYLE = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": 4,
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": 1.0,
    "bf16": {"enabled": "auto"},
    "optimizer": {"type": "auto", "params": {"lr": "auto", "betas": "auto"}},
    "scheduler": {"params": {"warmup_num_steps": "auto"}},
    "zero_optimization": {"stage": 2, "overlap_comm": True, "reduce_bucket_size": "auto"},
    "wall_clock_breakdown": False,
}


def test_what_says_the_same_or_auto_is_accepted_and_the_rest_passes_through() -> None:
    made = config(zero_stage=2, deepspeed=TRAINER_STYLE)
    assert made == {
        **config(zero_stage=2),
        "zero_optimization": {"stage": 2, "overlap_comm": True},
        "wall_clock_breakdown": False,
    }


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (
            {"gradient_clipping": 0.5},
            "gradient_clipping: 0.5 contradicts max_grad_norm of the stage, which makes it 1.0",
        ),
        ({"bf16": {"enabled": True}}, "bf16.enabled: True contradicts execution.precision"),
        ({"optimizer": {"params": {"lr": 1e-3}}}, "optimizer.params.lr: 0.001 contradicts optimizer and learning_rate"),
    ],
)
def test_what_says_something_else_is_refused_where_it_stands(change: dict[str, Any], place: str) -> None:
    with pytest.raises(StageError) as caught:
        config(zero_stage=2, deepspeed={**TRAINER_STYLE, **change})
    assert f"execution.deepspeed.{place}" in str(caught.value)


def test_clipping_is_left_to_the_engine_without_zero() -> None:
    assert config(deepspeed={"gradient_clipping": 1.0})["gradient_clipping"] == 0.0


def test_one_rank_has_nobody_to_share_with() -> None:
    def stage(ranks: int = 1, **execution: Any) -> int:
        return zero_stage(Execution.model_validate({"zero_stage": 3, **execution}), ranks)

    assert (stage(1), stage(2)) == (0, 3)
    assert stage(offload_optimizer=True) == stage(offload_parameters=True) == stage(precision="fp16") == 3
    assert stage(compile="inductor", deepspeed={"compile": {"deepcompile": True}}) == 3
    alone = deepspeed_config(Execution.model_validate({"zero_stage": 2}), BatchSplit(16, 1, 4), 1.0)
    assert (alone["zero_optimization"]["stage"], alone["gradient_clipping"]) == (0, 0.0)


@pytest.mark.parametrize(("setting", "enough"), [("offload_optimizer", 1), ("offload_parameters", 3)])
def test_offloading_needs_something_to_offload(setting: str, enough: int) -> None:
    key = {"offload_optimizer": "offload_optimizer", "offload_parameters": "offload_param"}[setting]
    assert config(zero_stage=enough, **{setting: True})["zero_optimization"][key] == {"device": "cpu"}
    with pytest.raises(StageError, match=rf"execution\.{setting}: ZeRO {enough - 1} has nothing to offload"):
        config(zero_stage=enough - 1, **{setting: True})


PIPELINE = """
name: demo
stages:
  corpus: {dataset: {sources: [{files: "*.txt"}]}}
  words: {tokenizer: {data: corpus, vocab_size: 300}}
  tokens: {pack: {data: corpus, tokenizer: words, context: 16}}
  base:
    pretrain: {data: tokens, objective: causal_lm, model: {type: llama}, max_steps: 4, global_batch_size: 16}
execution:
  base: {zero_stage: 2, per_device_train_batch_size: 4, deepspeed: conf/ds.json}
"""


def test_a_json_file_beside_the_pipeline(tmp_path: Path) -> None:
    """Read relative to the pipeline file; what is wrong with it is known before anything runs."""
    (tmp_path / "conf").mkdir()
    file, given = tmp_path / "p.yaml", tmp_path / "conf/ds.json"
    file.write_text(PIPELINE)
    with pytest.raises(
        ConfigError, match=r"p\.yaml:10: execution\.base\.deepspeed: cannot read .*ds\.json: No such file"
    ):
        load_pipeline(file)
    given.write_text("{")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_pipeline(file)
    given.write_text(json.dumps({**TRAINER_STYLE, "gradient_clipping": 3}))
    with pytest.raises(
        ConfigError, match=r"stages\.base\.pretrain: execution\.deepspeed\.gradient_clipping: 3 contradicts"
    ):
        load_pipeline(file)
    given.write_text(json.dumps(TRAINER_STYLE))
    assert load_pipeline(file).stages["base"].execution.deepspeed == TRAINER_STYLE

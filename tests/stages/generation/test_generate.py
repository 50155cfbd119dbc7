"""generate: what models write does not depend on batch, padding, order or company; what it is scored by is exact."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, PreTrainedTokenizerFast

from infra.errors import StageError
from infra.execution import Execution
from tasks.generation.text.decoding import Decoding
from tasks.generation.text.sampling import Drawn
from tasks.generation.text.writer import Output, Writer
from tasks.models.card import ModelCard, write_card
from tasks.objective import objective
from tasks.processors.tokenizer import Tokenizer
from tasks.stages import gate, generate

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NUMBERS = {"one": "eins", "two": "zwei", "three": "drei", "four": "vier"}
Made = Callable[..., Any]


@pytest.fixture(scope="module")
def model(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """`model("gpt2", stage="a", settings=...)`: a model artifact with random weights, far enough apart to say much."""

    def made(
        type: str, *, stage: str = "m", settings: Any = None, auto: Any = None, max_length: int = 64, **fields: Any
    ) -> Any:
        reads = type in ("t5", "bart")
        auto = auto or (AutoModelForSeq2SeqLM if reads else AutoModelForCausalLM)
        if type == "gpt2" or reads:
            fields = {"tie_word_embeddings": False, **fields}  # tied and untrained, it repeats what it reads
        folder = tmp_path_factory.mktemp("model")
        tiny.model(type, auto, vocabulary=tiny.VOCABULARY, **fields).save_pretrained(folder)
        for path in (tiny_inputs / "tokenizer").iterdir():
            shutil.copy(path, folder)
        write_card(folder, ModelCard(settings or {"name": "seq2seq" if reads else "causal_lm"}, max_length))
        return jobs.artifact(folder, "model", stage=stage)

    return made


@pytest.fixture(scope="module")
def texts(jobs: ModuleType, tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Twelve sources of very different lengths, and targets."""
    sources = [" ".join(list(NUMBERS)[(i + j) % 4] for j in range(1 + i % 7)) for i in range(12)]
    targets = [" ".join(NUMBERS[word] for word in source.split()) for source in sources]
    folder = tmp_path_factory.mktemp("texts") / "d"
    data = tiny.write_dataset(folder, {"test": {"text": sources, "target": targets}})
    return jobs.artifact(data, "dataset", stage="numbers", split="test")


def writer(model: Any, data: Any, asked: Any = None, **decoding: Any) -> Writer:
    from tasks.models.card import read_card

    chosen = objective(asked) if asked else read_card(model.path).objective
    return Writer(
        model, data, "test", chosen, Decoding(**decoding), Execution(), limit=None, truncation=False, threads=1
    )  # fmt: skip


def run(jobs: ModuleType, folder: Path, models: Sequence[Any], data: Any, **given: Any) -> Any:
    """The stage, one thread a model: the pools of this process do not survive its forks."""
    params = generate.Params.model_validate({"models": [m.stage for m in models], "data": data.stage, **given})
    job = jobs.make_job(folder, params, {"models": list(models), "data": data}, execution={"threads": 1})
    job.metrics = generate.run(job)
    job.scores = json.loads((folder / "output/scores.json").read_text())
    return job


def outputs(made: Writer) -> list[Output]:
    rows = [row for batch in range(len(made.batches)) for row in made.produce(batch)[0]]
    return sorted(rows, key=lambda row: row.place)


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("type", ["llama", "gpt2", "t5", "bart"])
def test_greedy_outputs_are_the_likeliest_tokens_in_any_batch(model: Made, texts: Any, type: str) -> None:
    """Token by token, unpadded, without a cache; then in batches of several sizes."""
    artifact = model(type)
    alone = writer(artifact, texts, max_new_tokens=8, batch_size=1)
    found = outputs(alone)
    net, reads = alone.model, alone.model.config.is_encoder_decoder
    for prompt, output in list(zip(alone.requests, found, strict=True))[::4]:
        ids = torch.from_numpy(np.asarray(prompt.input_ids, np.int64))[None]
        written: list[int] = []
        while len(written) < 8 and (not written or written[-1] != 2):
            with torch.no_grad():
                if reads:
                    start = torch.tensor([[net.config.decoder_start_token_id, *written]])
                    logits = net(input_ids=ids, decoder_input_ids=start).logits
                else:
                    logits = net(torch.cat([ids, torch.tensor([written], dtype=torch.int64)], 1)).logits
            written.append(int(logits[0, -1].argmax()))
        assert (output.tokens, output.finished) == (len(written), written[-1] == 2)
        assert output.text == alone.tokenizer.decode(written, skip_special_tokens=True)
    assert len({output.text for output in found}) > 3, "the model says different things"
    for size in (5, 16):
        assert outputs(writer(artifact, texts, max_new_tokens=8, batch_size=size)) == found


@pytest.mark.parametrize("type", ["gpt2", "bart"])
def test_beams_do_not_depend_on_the_batch(model: Made, texts: Any, type: str) -> None:
    given = {"max_new_tokens": 6, "num_beams": 3, "length_penalty": 0.5, "no_repeat_ngram_size": 2}
    artifact = model(type)
    found = outputs(writer(artifact, texts, batch_size=1, **given))
    assert outputs(writer(artifact, texts, batch_size=12, **given)) == found
    assert [o.text for o in found] != [o.text for o in outputs(writer(artifact, texts, max_new_tokens=6))]


@pytest.mark.parametrize("type", ["llama", "t5"])
def test_samples_follow_the_seed_and_the_example_and_nothing_else(model: Made, texts: Any, type: str) -> None:
    artifact = model(type)
    given = {"max_new_tokens": 6, "do_sample": True, "temperature": 1.5, "top_k": 50, "top_p": 0.95}
    found = outputs(writer(artifact, texts, batch_size=1, seed=1, **given))
    assert outputs(writer(artifact, texts, batch_size=7, seed=1, **given)) == found
    other = outputs(writer(artifact, texts, batch_size=7, seed=2, **given))
    assert sum(a.text != b.text for a, b in zip(found, other, strict=True)) > 6
    likeliest = outputs(writer(artifact, texts, max_new_tokens=6, do_sample=True, top_k=1))
    assert likeliest == outputs(writer(artifact, texts, max_new_tokens=6)), "of one token the likeliest is drawn"


def test_tokens_are_drawn_by_their_probability() -> None:
    """Frequencies over many examples, and over the steps of one; a token that is ruled out never comes."""
    chances = torch.tensor([0.5, 0.0, 0.3, 0.2])
    scores: Any = chances.log().expand(4000, 4)
    draw = Drawn(3, range(4000))
    first, second = (draw(None, scores).argmax(-1) for _ in range(2))  # type: ignore[arg-type]
    for drawn in (first, second):
        share = torch.bincount(drawn, minlength=4) / 4000
        assert share[1] == 0 and torch.allclose(share, chances, atol=0.03)
    assert 0.3 < float((first == second).float().mean()) < 0.46, "steps are independent: 0.38 agree by chance"
    one = Drawn(3, [7])
    steps = torch.cat([one(None, scores[:1]).argmax(-1) for _ in range(2000)])  # type: ignore[arg-type]
    assert torch.allclose(torch.bincount(steps, minlength=4) / 2000, chances, atol=0.05)
    assert int(steps[0]) == int(first[7]), "an example's draw is its own wherever it stands in a batch"


@pytest.mark.parametrize("beams", [1, 3])
def test_stop_strings_end_an_output_and_are_cut(model: Made, texts: Any, beams: int) -> None:
    artifact = model("llama")
    free = outputs(writer(artifact, texts, max_new_tokens=12, num_beams=beams))
    stop = next(o.text[len(o.text) // 2 :][:2] for o in free if len(o.text) > 6)
    cut = outputs(writer(artifact, texts, max_new_tokens=12, num_beams=beams, stop=[stop, "no such text"]))
    assert any(stop in o.text for o in free)
    if beams == 1:  # a search that ends earlier may choose another text
        assert [o.text for o in cut] == [o.text.partition(stop)[0] for o in free]
        for before, after in zip(free, cut, strict=True):
            assert after.finished == (before.finished or stop in before.text)
            assert after.tokens <= before.tokens
        assert sum(o.tokens for o in cut) < sum(o.tokens for o in free), "it stops, and does not only cut"
    assert all(stop not in o.text for o in cut)


def test_no_setting_of_the_models_own_generation_config_is_used(model: Made, texts: Any) -> None:
    artifact = model("llama", stage="own")
    plain = outputs(writer(artifact, texts, max_new_tokens=5))
    file = artifact.path / "generation_config.json"
    file.write_text(json.dumps({"do_sample": True, "num_beams": 4, "min_length": 30, "repetition_penalty": 9.0, "eos_token_id": 2}))  # fmt: skip
    assert outputs(writer(artifact, texts, max_new_tokens=5)) == plain
    chosen = [o.tokens for o in outputs(writer(artifact, texts, max_new_tokens=5, min_new_tokens=5))]
    assert chosen == [5] * 12


def test_a_conversation_is_asked_up_to_its_last_answer_and_ends_with_the_turn(
    jobs: ModuleType, tiny: ModuleType, tmp_path: Path
) -> None:
    folder = tiny.write_inputs(tmp_path / "in", more=["<|im_start|>", "<|im_end|>"]) / "tokenizer"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    talk = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "eins"},
        {"role": "user", "content": "thanks"},
    ]
    rows = [{"text": "", "messages": talk}, {"text": "", "messages": talk[:2]}]
    data = jobs.artifact(tiny.write_rows(tmp_path / "d", {"test": rows}), "dataset", stage="talks")
    chosen = objective({"name": "causal_lm", "messages": "messages", "chat_template": CHATML})
    first, second = chosen.bound(Tokenizer(tokenizer, 64)).requests(data, "test")
    assert tokenizer.decode(first.input_ids) == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
        "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    )
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (first.shown, first.reference, first.ends, second.reference) == ("one", "eins", (end,), "yes")
    cut = chosen.bound(Tokenizer(tokenizer, 5)).requests(data, "test")[0]
    assert cut.input_ids.tolist() == first.input_ids[-5:].tolist() and cut.tokens == len(first.input_ids)
    for wrong, says in (([talk[0]], "no message is of the role 'assistant'"), (talk[1:2], "begins with its only")):
        bad = tiny.write_rows(tmp_path / says[:4], {"test": [{"text": "", "messages": wrong}]})
        with pytest.raises(StageError, match=rf"example 'test#0'.*{says}"):
            chosen.bound(Tokenizer(tokenizer, 64)).requests(jobs.artifact(bad, "dataset", stage="talks"), "test")
    with pytest.raises(StageError, match="no chat template"):
        objective({"name": "causal_lm", "messages": "messages"}).bound(Tokenizer(tokenizer, 64)).requests(data, "test")


def test_a_text_is_continued_from_its_middle(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:  # fmt: skip
    from tokenizers.processors import TemplateProcessing

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer")
    texts = ["one two three four", "abcdef", "üb er"]
    data = jobs.artifact(tiny.write_dataset(tmp_path / "d", {"test": {"text": texts}}), "dataset", stage="d")
    plain = objective("causal_lm").bound(Tokenizer(tokenizer, 64)).requests(data, "test")
    assert [(p.shown, p.reference) for p in plain] == [("one two", "three four"), ("abc", "def"), ("üb", "er")]
    assert [tokenizer.decode(p.input_ids) for p in plain] == [p.shown for p in plain]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    closed = objective("causal_lm").bound(Tokenizer(tokenizer, 64)).requests(data, "test")
    assert [p.input_ids.tolist() for p in closed] == [[1, *p.input_ids.tolist()] for p in plain], "nothing ends it"


# --- what it is scored by ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(jobs: ModuleType, model: Made, texts: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Two encoder-decoders side by side."""
    models = [model("t5", stage="big"), model("t5", stage="small", layers=1)]
    given = {"decoding": {"max_new_tokens": 8}, "post_process": ["strip"], "resamples": 200}
    return run(jobs, tmp_path_factory.mktemp("scored"), models, texts, **given)


def test_scores_are_sacrebleus_and_rouge_scores_own(scored: Any) -> None:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu import corpus_bleu, corpus_chrf

    lines = [json.loads(line) for line in (scored.records / "outputs.jsonl").read_text().splitlines()]
    references = [line["reference"] for line in lines]
    rouge = RougeScorer(["rougeL"])
    for name, found in scored.scores["models"].items():
        metrics = {metric: entry["value"] for metric, entry in found["metrics"].items()}
        said = [line["outputs"][name]["text"].strip() for line in lines]
        assert metrics["bleu"] == pytest.approx(corpus_bleu(said, [references]).score)
        assert metrics["chrf"] == pytest.approx(corpus_chrf(said, [references]).score)
        each = [rouge.score(reference, text)["rougeL"].fmeasure for reference, text in zip(references, said, strict=True)]  # fmt: skip
        assert metrics["rougeL"] == pytest.approx(np.mean(each))
        assert metrics["length_ratio"] == pytest.approx(sum(map(len, said)) / sum(map(len, references)))
        assert metrics["unfinished"] == pytest.approx(np.mean([not line["outputs"][name]["finished"] for line in lines]))  # fmt: skip
        assert all(entry["n"] == 12 for entry in found["metrics"].values())
    sources = [line["prompt"] for line in lines]
    assert scored.scores["baselines"] == {"copy": pytest.approx(corpus_chrf(sources, [references]).score)}
    assert set(scored.metrics) == {"chrf big", "chrf small"}


def test_the_scores_feed_a_gate_and_a_report(scored: Any, jobs: ModuleType, tmp_path: Path) -> None:
    from tasks.release.evidence import Evidence
    from tasks.release.report.views.samples import samples_views
    from tasks.release.report.views.scores import scores_view

    assert scored.scores["data"] == {"stage": "numbers", "split": "test", "n": 12, "digest": "0" * 64}
    drawn = load_file(scored.output / "replicates.safetensors")
    assert len(drawn["big/chrf"]) == 200 and drawn["big/chrf"].std() > 0
    require = [
        {"metric": "chrf", "min_gain": -100, "confidence": 0.95},
        {"metric": "unfinished", "max": 1.0},
        {"metric": "size_mb", "max_ratio": 1.0},
    ]
    asked = {"scores": "written", "candidate": "small", "against": "big", "require": require}
    job = jobs.make_job(tmp_path, gate.Params.model_validate(asked), {"scores": jobs.artifact(scored.output, "scores")})
    assert gate.run(job)["met"] == 3
    view = scores_view("written", scored.scores, None, "small")
    assert view is not None and view.quality.columns[0].lower().startswith("chrf") and len(view.quality.rows) == 2
    ratio = [title.lower().replace(" ", "_") for title in view.quality.columns].index("length_ratio")
    assert not any(row.cells[ratio].best for row in view.quality.rows), "neither more nor less of it is better"
    shown = samples_views({"written": Evidence({}, scored.output, scored.records)}, [])
    assert list(shown[0]["other"][0]) == ["prompt", "reference", "big writes", "small writes"]
    assert len(shown[0]["other"]) == 12
    speed = json.loads((scored.records / "speed.json").read_text())
    assert all(one["tokens_per_second"] == pytest.approx(one["tokens"] / one["seconds"]) for one in speed.values())


def test_the_same_asked_twice_is_the_same_bytes(jobs: ModuleType, scored: Any, tmp_path: Path) -> None:
    given = {"decoding": {"max_new_tokens": 8}, "post_process": ["strip"], "resamples": 200}
    again = run(jobs, tmp_path, scored.inputs["models"], scored.inputs["data"][0], **given)
    for name in ("scores.json", "predictions.safetensors", "replicates.safetensors"):
        assert (again.output / name).read_bytes() == (scored.output / name).read_bytes(), name


def test_models_of_two_kinds_are_judged_by_the_same_references(
    jobs: ModuleType, model: Made, texts: Any, tmp_path: Path
) -> None:
    given = {"metrics": ["token_f1"], "limit": 3, "resamples": 100, "decoding": {"max_new_tokens": 3}}
    models = [model("llama", stage="a"), model("gpt2", stage="b")]
    scores = run(jobs, tmp_path / "ok", models, texts, **given).scores
    assert scores["data"]["n"] == 3
    assert set(scores["models"]["a"]["metrics"]) == {"token_f1", "length_ratio", "unfinished"}
    with pytest.raises(StageError, match="'b' and 'a' would be judged by different references"):
        run(jobs, tmp_path / "no", [models[0], model("t5", stage="b")], texts, **given)


# --- what cannot be -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("decoding", "says"),
    [
        ({"temperature": 0.7}, "`temperature` is about drawing tokens"),
        ({"top_p": 0.9, "do_sample": False}, "`top_p` is about drawing tokens"),
        ({"do_sample": True, "num_beams": 4}, "choose one of them"),
        ({"length_penalty": 2.0}, "set `num_beams` above 1"),
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "`min_new_tokens` is more than"),
        ({"stop": [""]}, "at least 1 character"),
    ],
)
def test_settings_that_contradict_each_other(decoding: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        generate.Params.model_validate({"models": ["m"], "data": "d", "decoding": decoding})


@pytest.mark.parametrize(("regex", "says"), [("(", "no regular expression"), ("a", "0 groups"), ("(a)(b)", "2 groups")])
def test_a_regex_has_one_group(regex: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        generate.Params.model_validate({"models": ["m"], "data": "d", "post_process": [{"regex": regex}]})


def test_what_a_model_cannot_do_is_said_before_it_writes(
    jobs: ModuleType, model: Made, texts: Any, tmp_path: Path
) -> None:
    def asked(artifact: Any, **given: Any) -> None:
        run(jobs, tmp_path, [artifact], texts, **{"metrics": ["exact_match"], "resamples": 100, **given})

    encoder = model("bert", auto=AutoModelForMaskedLM, settings={"name": "masked_lm"})
    llama = model("llama")
    long, short = {"max_new_tokens": 60}, {"max_new_tokens": 4}
    cases: Sequence[tuple[str, Any, dict[str, Any]]] = [
        ("objective masked_lm generates nothing", encoder, {"decoding": short}),
        (
            "a bert is an encoder: it reads texts and writes none",
            encoder,
            {"objective": "causal_lm", "decoding": short},
        ),
        (
            "is a decoder .llama. and cannot be asked as AutoModelForSeq2SeqLM",
            llama,
            {"objective": "seq2seq", "decoding": short},
        ),
        ("max_new_tokens 64 does not fit a model of 64 tokens", llama, {}),
        (r"prompts are longer than the 4 tokens there is room for, .*'test/\d+' with \d+", llama, {"decoding": long}),
        ("max_new_tokens 64 does not fit a model of 64 tokens", model("bart"), {}),
        ("trained for no objective here", model("llama", settings={"name": "causal_lm"}, stage="raw"), {}),
    ]
    for says, artifact, given in cases:
        if artifact.stage == "raw":
            write_card(artifact.path, ModelCard(None, 64))
        with pytest.raises(StageError, match=says):
            asked(artifact, **given)
    asked(llama, decoding=long, truncation=True)


def test_logits_that_are_no_numbers_and_a_model_without_an_end(model: Made, texts: Any) -> None:
    broken = writer(model("llama"), texts, max_new_tokens=4)
    with torch.no_grad():
        broken.model.lm_head.weight[5] = float("nan")
    name = broken.requests[broken.batches[0][0]].name
    with pytest.raises(StageError, match=f"not numbers .nan. on example '{name}'"):
        broken.produce(0)
    endless = model("gpt2", eos_token_id=None, bos_token_id=None)
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        if (endless.path / file).exists():
            spoken = json.loads((endless.path / file).read_text())
            spoken.pop("eos_token", None)
            (endless.path / file).write_text(json.dumps(spoken))
    with pytest.raises(StageError, match="has an end-of-text token"):
        writer(endless, texts, max_new_tokens=4)
    fixed = outputs(writer(endless, texts, max_new_tokens=4, min_new_tokens=4))
    assert all(o.tokens == 4 and not o.finished for o in fixed)
    assert outputs(writer(endless, texts, max_new_tokens=4, stop=["\n"]))


def test_an_empty_reference_names_its_example(jobs: ModuleType, tiny: ModuleType, model: Made, tmp_path: Path) -> None:
    made = tiny.write_dataset(tmp_path / "d", {"test": {"text": ["one", "two"], "target": ["eins", " "]}})
    with pytest.raises(StageError, match="the reference of example 'test/1' is empty"):
        writer(model("t5"), jobs.artifact(made, "dataset", stage="d"), max_new_tokens=4)


def test_the_end_of_text_may_pad_a_batch(model: Made, texts: Any) -> None:
    """As with GPT-2, which has no padding token: what stands behind a stop string counts for nothing."""
    artifact = model("llama", stage="unpadded", pad_token_id=None)
    file = artifact.path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": None}))
    free = outputs(writer(artifact, texts, max_new_tokens=12, batch_size=1))
    stop = next(o.text[len(o.text) // 2 :][:2] for o in free if len(o.text) > 6)
    alone = outputs(writer(artifact, texts, max_new_tokens=12, batch_size=1, stop=[stop]))
    together = writer(artifact, texts, max_new_tokens=12, batch_size=12, stop=[stop])
    assert together.config.pad_token_id == 2 == together.tokenizer.eos_token_id
    assert outputs(together) == alone and {o.finished for o in alone} == {True, False}

"""Question answering: windows over long texts, SQuAD's own counting, parity with HF's loss, and every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForQuestionAnswering

from infra.errors import StageError
from tasks.losses.distillation import distillation
from tasks.metrics.squad import best, exact_match, likeliest_sentence, normalized, token_f1
from tasks.models.inputs import model_inputs
from tasks.models.loading import load_model
from tasks.objectives.text.question_answering import QuestionAnswering
from tasks.processors.tokenizer import Tokenizer, load_tokenizer
from tasks.stage import stages
from tasks.training.engine.batch import BatchSplit
from tasks.training.engine.ranks import Ranks
from tasks.training.loop.loader import Loader
from tasks.training.loop.result import TrainResult
from tasks.training.loop.sampler import Sampler
from tasks.training.loop.validate import validate

COLOURS, ANIMALS = ("red", "blue", "green", "black"), ("cat", "dog", "fox", "hen")
FILLERS = ("we", "saw", "then", "and", "some", "old", "house")


def questions(count: int, seed: int, *, longest: int = 40) -> list[dict[str, Any]]:
    """Texts with one colour and perhaps one animal among other words; `which colour` or `which animal` is asked."""
    random, rows = np.random.default_rng(seed), []
    for _ in range(count):
        words = [str(word) for word in random.choice(FILLERS, int(random.integers(4, longest)))]
        wanted = {"colour": str(random.choice(COLOURS)), "animal": str(random.choice(ANIMALS))}
        kind = ("colour", "animal")[int(random.integers(2))]
        for name, word in wanted.items():
            if name == "colour" or random.random() < 0.6:
                words.insert(int(random.integers(len(words))), word)
        text = " ".join(words)
        place = f" {text} ".find(f" {wanted[kind]} ")
        answers = {"text": [wanted[kind]], "answer_start": [place]} if place >= 0 else {"text": [], "answer_start": []}
        rows.append({"text": text, "question": f"which {kind}", "answers": answers})
    return rows


@pytest.fixture(scope="module")
def tokenizer(tiny: ModuleType) -> Any:
    return tiny.word_tokenizer(["which", "colour", "animal", *COLOURS, *ANIMALS, *FILLERS])


@pytest.fixture(scope="module")
def data(tiny: ModuleType, jobs: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Any:
    splits = {"train": questions(240, 0), "validation": questions(50, 1), "test": questions(70, 2)}
    return jobs.artifact(tiny.write_rows(tmp_path_factory.mktemp("asked") / "d", splits), "dataset", stage="asked")


def written(jobs: ModuleType, tiny: ModuleType, folder: Path, *rows: dict[str, Any]) -> Any:
    return jobs.artifact(tiny.write_rows(folder / "d", {"train": rows}), "dataset", stage="asked")


def asked(text: str, *answers: str, question: str = "which colour", start: int | None = None) -> dict[str, Any]:
    places = [text.index(a) if start is None else start for a in answers]
    return {"text": text, "question": question, "answers": {"text": list(answers), "answer_start": places}}


@pytest.mark.parametrize(
    ("answer", "references", "exact", "f1"),
    [
        ("The Eiffel-Tower!", ["Eiffel Tower"], 0, 0),  # punctuation goes without a space: `eiffeltower`
        ("the  cat.", ["a Cat"], 1, 1),
        ("a cat sat", ["the cat"], 0, 2 / 3),
        ("in June 1990", ["1990", "June 1990"], 0, 0.8),
        ("cat cat dog", ["cat dog dog"], 0, 2 / 3),
        ("", [], 1, 1),
        ("cat", [], 0, 0),
        ("", ["cat"], 0, 0),
        ("", ["the", "A."], 1, 1),  # nothing is left of the references, which the official script drops
        ("Theatre an", ["theatre"], 1, 1),
    ],
)
def test_answers_are_counted_as_the_official_script_does(
    answer: str, references: list[str], exact: float, f1: float
) -> None:
    assert best(exact_match, answer, references) == exact
    assert best(token_f1, answer, references) == pytest.approx(f1)


def test_normalization_by_hand() -> None:
    assert normalized("  The U.S.A. --\tan \u201cA\u201d-team ") == "usa \u201c \u201dteam"
    assert likeliest_sentence("Rome is old. The cat sat!\nA dog ran.", "Did the dog run?") == "A dog ran."


def test_windows_cover_the_text_and_point_to_the_answer(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path
) -> None:
    """Of `[CLS] which colour [SEP] ... [SEP]` 7 words of text fit in 12 tokens, 3 of them shared with the next window."""
    words = [FILLERS[i % 7] for i in range(20)]
    words[9] = "red"
    text = " ".join(words)
    row = {**asked(text, "red"), "id": "x"}
    feature = (
        QuestionAnswering(stride=3)
        .bound(Tokenizer(tokenizer, 12))
        .examples(written(jobs, tiny, tmp_path, row), "train")[0]
    )
    assert [len(ids) for ids in feature["input_ids"]] == [12, 12, 12, 12, 9]
    parts = [[text[b:e] for b, e in places if b >= 0] for places in feature["characters"]]
    assert parts == [words[start : start + 7] for start in (0, 4, 8, 12, 16)]
    assert feature["labels"] == [(0, 0), (4 + 5, 4 + 5), (4 + 1, 4 + 1), (0, 0), (0, 0)]
    assert [types.tolist() for types in feature["token_types"]][-1] == [0] * 4 + [1] * 5
    assert QuestionAnswering().length(feature) == 57
    # However much neighbours are to share, they go on by at least half of their text.
    assert (
        len(
            QuestionAnswering(stride=100)
            .bound(Tokenizer(tokenizer, 12))
            .examples(written(jobs, tiny, tmp_path / "b", row), "train")[0]["labels"]
        )
        < 6
    )


def test_an_answer_torn_by_a_window_is_not_in_it(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path
) -> None:
    text = "we saw then red blue and some old house"
    data = written(jobs, tiny, tmp_path, asked(text, "red blue and"), asked(text, " red blue "), asked(text))
    feature, spaced, silent = QuestionAnswering(stride=0).bound(Tokenizer(tokenizer, 10)).examples(data, "train")
    assert [len(ids) - 5 for ids in feature["input_ids"]] == [5, 4]
    assert feature["labels"] == [(0, 0), (0, 0)], "`and` is in the second window"
    assert spaced["labels"] == [(4 + 3, 4 + 4), (0, 0)], "white space around an answer is no part of it"
    assert silent["labels"] == [(0, 0), (0, 0)]


def test_a_tokenizer_of_a_decoder_serves(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path, tmp_path: Path) -> None:
    """Byte-level, without [CLS] or separators: a line break parts question and text, the first token means no answer."""
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None and tokenizer.cls_token_id is None
    data = written(
        jobs, tiny, tmp_path, asked("na\u00efve return of self.value \u2014 not None", "self.value", question="what?")
    )
    feature = QuestionAnswering().bound(Tokenizer(tokenizer, 64)).examples(data, "train")[0]
    assert tokenizer.decode(feature["input_ids"][0].tolist()).startswith("what?\nna\u00efve")
    first, last = feature["labels"][0]
    places = feature["characters"][0]
    assert feature["context"][places[first, 0] : places[last, 1]].strip() == "self.value"
    assert feature["null"] == [0]


def exact(batch: dict[str, torch.Tensor]) -> np.ndarray:
    """Logits [W, T, 2] of a model that knows every window's answer, and most surely that there is none."""
    logits = np.zeros((*batch["input_ids"].shape, 2), np.float32)
    for i, (first, last) in enumerate(batch["labels"].tolist()):
        logits[i, first, 0] = logits[i, last, 1] = 7.0 if last == batch["null"][i] else 5.0
    return logits


def arrays(batch: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batch.items()}


def test_perfect_windows_are_a_perfect_answer(tokenizer: Any, data: Any) -> None:
    chosen = QuestionAnswering(stride=6)
    features = chosen.bound(Tokenizer(tokenizer, 20)).examples(data, "test")
    batch = chosen.collate(features)
    assert len(batch["input_ids"]) == chosen.units(batch) == sum(len(f["input_ids"]) for f in features) > len(features)
    found = chosen.predictions({"logits": exact(batch)}, arrays(batch))
    values = {name: float(v[0]) for name, v in chosen.metrics(found, np.ones((1, len(features)))).items()}
    assert set(values.values()) == {1.0} and len(found["f1"]) == len(features)
    empty = [f for f in features if not f["answers"]]
    assert 0 < len(empty) < len(features)
    assert chosen.baselines([], features)["no_answer"] == pytest.approx(len(empty) / len(features))


def test_the_best_span_by_hand(jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path) -> None:
    """Tokens: [CLS] which colour [SEP] | red blue green black | [SEP]."""
    data = written(jobs, tiny, tmp_path, asked("red blue green black", "blue green"))
    feature = QuestionAnswering().bound(Tokenizer(tokenizer, 20)).examples(data, "train")

    def said(begins: list[float], ends: list[float], **options: Any) -> str:
        chosen = QuestionAnswering(**options)
        batch = chosen.collate(feature)
        begin, end, _ = chosen.best_spans(np.array([begins, ends]).T[None], arrays(batch))
        return "red blue green black"[begin[0] : end[0]] if begin[0] >= 0 else ""

    begins, ends = [1, 9, 0, 0, 2, 3, 0, 0, 9.0], [1, 9, 0, 0, 6, 0, 2, 4, 9.0]
    assert said(begins, ends) == "red", "2 + 6; neither the question nor [SEP] answers, and 3 + 6 would run backwards"
    ends[4] = 0
    assert said(begins, ends) == "blue green black"
    assert said(begins, ends, max_answer_length=2) == "blue green"
    assert said(begins, ends, max_answer_length=1) == "black", "0 + 4 beats 3 + 0"
    begins[0] = 7
    assert said(begins, ends) == "", "7 + 1 of no answer beats 3 + 4"
    assert said(begins, ends, null_threshold=1.0) == "blue green black", "but not by more than 1"
    assert said(begins, ends, null_threshold=None) == "blue green black"


def test_a_weight_of_two_is_the_question_twice(tokenizer: Any, data: Any) -> None:
    chosen = QuestionAnswering()
    features = chosen.bound(Tokenizer(tokenizer, 20)).examples(data, "test")[:12]
    batch = chosen.collate(features)
    logits = np.random.default_rng(0).normal(size=(*batch["input_ids"].shape, 2)).astype(np.float32)
    found = chosen.predictions({"logits": logits}, arrays(batch))
    weights = np.random.default_rng(1).integers(0, 3, (4, 12)).astype(float)
    weights[0] = found["answerable"]
    metrics = chosen.metrics(found, weights)
    for row, w in enumerate(weights.astype(int)):
        again = chosen.metrics(
            {name: np.repeat(values, w, axis=0) for name, values in found.items()}, np.ones((1, w.sum()))
        )
        assert {n: v[row] for n, v in metrics.items()} == pytest.approx(
            {n: v[0] for n, v in again.items()}, nan_ok=True
        )
    assert np.isnan(metrics["f1_unanswerable"][0]), "undefined without such questions, not 0"


def test_the_soft_loss_is_of_first_and_last_token_without_padding(tokenizer: Any, data: Any) -> None:
    chosen = QuestionAnswering()
    features = sorted(chosen.bound(Tokenizer(tokenizer, 64)).examples(data, "test"), key=chosen.length)
    batch = chosen.collate([features[0], features[-1]])
    a, b = (torch.randn(*batch["input_ids"].shape, 2, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    width = len(features[0]["input_ids"][0])
    expected = (
        sum(
            distillation(a[:1, :width, i], b[:1, :width, i], 2.0) + distillation(a[1:, :, i], b[1:, :, i], 2.0)
            for i in (0, 1)
        )
        / 2
    )
    assert width < a.shape[1]
    torch.testing.assert_close(chosen.distillation_loss({"logits": a}, {"logits": b}, batch, 2.0), expected)


def fresh(tiny: ModuleType, tokenizer: Any, **fields: Any) -> Any:
    shape = {"vocabulary": len(tokenizer), "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return tiny.model("bert", AutoModelForQuestionAnswering, **shape, **fields)


def test_parity_with_a_bare_loop_over_the_models_own_loss(
    parity: Any, tiny: ModuleType, tokenizer: Any, data: Any
) -> None:
    """HF's loss of each window alone (beside longer ones it would count padding as an answer), averaged over a step's.

    Questions have one to four windows, so that micro-batches of two questions hold unequal numbers of units.
    """
    chosen = QuestionAnswering(stride=4)
    features = chosen.bound(Tokenizer(tokenizer, 18)).examples(data, "train")[:40]
    assert {len(f["input_ids"]) for f in features} >= {1, 2, 3, 4}
    parity(
        chosen, features, lambda: fresh(tiny, tokenizer), mean_loss=each_window_alone, steps=14, rate=5e-3, falls=0.3
    )


def each_window_alone(model: Any, rows: Any, batch: Any) -> torch.Tensor:
    losses = [
        model(
            input_ids=torch.from_numpy(ids[None]).long(),
            token_type_ids=torch.from_numpy(types[None]).long(),
            start_positions=torch.tensor([first]),
            end_positions=torch.tensor([last]),
        ).loss
        for row in rows
        for ids, types, (first, last) in zip(*(row[n] for n in ("input_ids", "token_types", "labels")), strict=True)
    ]
    return torch.stack(losses).mean()


def test_a_batch_of_equal_windows_has_the_loss_hf_gives_it(tiny: ModuleType, tokenizer: Any, data: Any) -> None:
    chosen, model = QuestionAnswering(), fresh(tiny, tokenizer)
    features = chosen.bound(Tokenizer(tokenizer, 14)).examples(data, "train")
    batch = chosen.collate([f for f in features if len({14, *map(len, f["input_ids"])}) == 1][:6])
    first, last = batch["labels"].unbind(1)
    with torch.no_grad():
        output = model(**model_inputs(batch, model), start_positions=first, end_positions=last)
    total, units = chosen.loss({"logits": chosen.read(output)["logits"]}, batch)
    torch.testing.assert_close(total / units, output.loss)
    assert {"input_ids", "attention_mask", "token_type_ids"} == set(model_inputs(batch, model))


def test_padding_and_neighbours_do_not_change_a_prediction(tiny: ModuleType, tokenizer: Any, data: Any) -> None:
    chosen, model = QuestionAnswering(stride=4), fresh(tiny, tokenizer, initializer_range=0.3)
    features = chosen.bound(Tokenizer(tokenizer, 24)).examples(data, "test")
    short = min(features, key=chosen.length)
    several = next(f for f in features if len(f["input_ids"]) > 1)
    found = []
    for group in ([short], [several, short], [short, several, several]):
        batch = chosen.collate(group)
        with torch.no_grad():
            logits = chosen.read(model(**model_inputs(batch, model)))["logits"]
        own = next(i for i, f in enumerate(group) if f is short)
        row = {
            name: values[own] for name, values in chosen.predictions({"logits": logits.numpy()}, arrays(batch)).items()
        }
        window = batch["questions"] == own
        part = {name: batch[name][window] for name in ("attention_mask", "labels")}
        found.append(({n: float(v) for n, v in row.items()}, float(chosen.loss({"logits": logits[window]}, part)[0])))
    assert batch["input_ids"].shape[1] > len(short["input_ids"][0])
    for row, loss in found[1:]:
        assert row == pytest.approx(found[0][0], abs=1e-4)
        assert loss == pytest.approx(found[0][1], abs=1e-4)


def test_validation_and_loader_count_questions(tiny: ModuleType, tokenizer: Any, data: Any) -> None:
    """40 questions in more windows: over batches of 32 the loss is the mean over windows, metrics over questions."""
    chosen, model = QuestionAnswering(stride=4), fresh(tiny, tokenizer)
    features = chosen.bound(Tokenizer(tokenizer, 20)).examples(data, "validation")[:40]

    def forward(batch: Any) -> Any:
        return chosen.read(model(**model_inputs(batch, model)))

    values = validate(chosen, forward, features, Ranks())
    whole = chosen.collate(features)
    with torch.no_grad():
        logits = forward(whole)["logits"]
    total, units = chosen.loss({"logits": logits}, whole)
    assert values["loss"] == pytest.approx(float(total) / units, abs=1e-5)
    expected = chosen.metrics(chosen.predictions({"logits": logits.numpy()}, arrays(whole)), np.ones((1, 40)))
    assert values["f1"] == pytest.approx(float(expected["f1"][0]))
    loader = Loader(features, chosen, Sampler(40, 0, BatchSplit(8, 1, 4)), 0)
    micros = loader.step(0, last=True)
    loader.close()
    assert [int(batch["questions"][-1]) + 1 for _, batch in micros] == [4, 4]


def test_a_decoders_backbone_is_kept_under_its_other_name(tiny: ModuleType, tmp_path: Path) -> None:
    """LlamaForQuestionAnswering calls it `transformer`; HF then finds none of its weights and says nothing."""
    base = tiny.model("llama", AutoModelForCausalLM)
    base.save_pretrained(tmp_path)
    found = load_model(tmp_path, "AutoModelForQuestionAnswering")
    mine = dict(found.base_model.named_parameters())
    for name, value in base.base_model.named_parameters():
        assert torch.equal(mine[name], value), name


def test_every_stage(jobs: ModuleType, tiny: ModuleType, tokenizer: Any, data: Any, tmp_path: Path) -> None:
    shape = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.1}
    model = tiny.model("bert", AutoModelForMaskedLM, vocabulary=len(tokenizer), **shape)
    base = tiny.write_model(tmp_path / "base", model, tokenizer, 24)
    common = {"learning_rate": 1e-2, "global_batch_size": 8}
    found = tiny.stage_chain(
        jobs, tmp_path, base, data.path,
        finetune={"objective": {"name": "question_answering", "stride": 6}, "epochs": 6, **common},
        distill={"layers": 1, "epochs": 4, **common},
    )  # fmt: skip
    best_baseline = max(value for name, value in found["finetune"].items() if name.startswith("baseline_"))
    assert found["finetune"]["validation_f1"] > best_baseline + 0.2
    assert min(found["evaluate"].values()) > best_baseline + 0.2 and len(found["evaluate"]) == 4
    assert found["prune"]["parameters_ratio"] < 1 and found["prune"]["validation_f1"] > 0.5
    scores = json.loads((tmp_path / "evaluate/output/scores.json").read_text())
    assert (scores["primary_metric"], scores["data"]["n"]) == ("f1", 70)
    samples = json.loads((tmp_path / "evaluate/records/samples.json").read_text())["finetune"]
    assert any(s["truth"] == s["prediction"] != "(no answer)" for s in samples)
    gate = stages()["gate"]
    given = {
        "scores": "e",
        "candidate": "quantize",
        "against": "finetune",
        "require": [{"metric": "f1", "max_drop": 0.3}],
    }
    inputs = {"scores": jobs.artifact(tmp_path / "evaluate/output", "scores")}
    assert gate.run(jobs.make_job(tmp_path / "gate", gate.params.model_validate(given), inputs))["passed"] == 1


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda row: {key: value for key, value in row.items() if key != name}


GOOD = asked("we saw red", "red")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (asked("we saw red", "red", start=6), "train#0: the answer 'red' does not stand at 6 of the text, but ' re'"),
        (asked("we saw red", "red", start=-3), "does not stand at -3"),
        ({**GOOD, "answers": {"text": ["red"], "answer_start": []}}, "train#0: column 'answers' holds no answers"),
        ({**GOOD, "answers": {"text": ["red"], "answer_start": ["7"]}}, "places are integers"),
        ({**GOOD, "answers": ["red"]}, "train#0: column 'answers' holds no answers"),
        (asked("we saw red", " "), "train#0: an empty answer"),
        ({**GOOD, "question": " "}, "train#0: column 'question' is empty"),
        ({**GOOD, "question": "which colour " * 9}, "train#0: its question of 18 tokens leaves no room"),
        (without("answers")(GOOD), "no column 'answers'"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(
    jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path, row: dict[str, Any], says: str
) -> None:
    with pytest.raises(StageError, match="asked") as caught:
        QuestionAnswering().bound(Tokenizer(tokenizer, 20)).examples(written(jobs, tiny, tmp_path, row), "train")
    assert says in str(caught.value)


def test_a_split_without_answers_is_allowed(jobs: ModuleType, tiny: ModuleType, tokenizer: Any, tmp_path: Path) -> None:
    chosen = QuestionAnswering()
    features = chosen.bound(Tokenizer(tokenizer, 20)).examples(
        written(jobs, tiny, tmp_path, asked("we saw"), asked("and then")), "train"
    )
    batch = chosen.collate(features)
    values = chosen.metrics(chosen.predictions({"logits": exact(batch)}, arrays(batch)), np.ones((1, 2)))
    assert values["f1"][0] == values["f1_unanswerable"][0] == 1 and np.isnan(values["f1_answerable"][0])
    shown = TrainResult.untrained(fresh(tiny, tokenizer), chosen, features).metrics()
    assert "validation_f1_unanswerable" in shown
    assert np.isfinite(list(shown.values())).all(), "a store commits no metric that is not a number"

"""Causal language modelling: what counts as a unit, agreement with the model's own loss, honest baselines."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from infra.errors import StageError
from tasks.models.inputs import model_inputs
from tasks.objective import objective
from tasks.objectives.text.causal_lm import CausalLM
from tasks.objectives.text.inputs.texts import measured_texts
from tasks.processors.tokenizer import Tokenizer, load_tokenizer


def test_packed_rows_are_read_in_place(jobs: ModuleType, tiny_inputs: Path) -> None:
    rows = CausalLM().bound(Tokenizer(None, 64)).examples(jobs.artifact(tiny_inputs / "tokens", "tokens"), "train")
    ids = load_file(tiny_inputs / "tokens/train/0.safetensors")["ids"]
    assert sorted(np.concatenate([row["input_ids"] for row in rows]).tolist()) == sorted(ids.tolist())
    assert isinstance(rows.rows.files[0], np.memmap)  # type: ignore[attr-defined]
    alone = next(row for row in rows if len(row["segments"]) == 1)
    assert isinstance(alone["input_ids"], np.memmap), "a row of one document is no copy"


@pytest.mark.parametrize("type", ["llama", "gpt2"])
def test_documents_in_a_row_do_not_see_each_other(tiny: ModuleType, type: str) -> None:
    """Loss and gradients of a packed row are those of its documents one by one, padding and all."""
    documents = [f["input_ids"] for f in tiny.lm_features(5)]
    packed = [
        {"input_ids": np.concatenate(documents[:3]), "segments": np.array([len(d) for d in documents[:3]])},
        {"input_ids": np.concatenate(documents[3:]), "segments": np.array([len(d) for d in documents[3:]])},
    ]
    found = []
    for features in (packed, [{"input_ids": document} for document in documents]):
        model, batch = tiny.model(type).eval(), CausalLM().collate(features)
        model.config.use_cache = (
            False  # as the training loop does; with a cache transformers does not look for documents
        )
        loss, units = CausalLM().loss({"logits": model(**model_inputs(batch, model)).logits}, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        assert units == CausalLM().units(batch) == sum(len(d) - 1 for d in documents)
        found.append((loss.detach(), next(p.grad for n, p in model.named_parameters() if "wte" in n or "embed" in n)))
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-4, rtol=1e-4)


def test_texts_of_a_dataset_serve_too(jobs: ModuleType, tiny_inputs: Path) -> None:
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    rows = (
        CausalLM().bound(Tokenizer(tokenizer, 20)).examples(jobs.artifact(tiny_inputs / "dataset", "dataset"), "test")
    )
    assert len(rows) > 10 and max(len(row["input_ids"]) for row in rows) == 20


def test_loss_is_the_models_own_and_padding_counts_for_nothing(tiny: ModuleType) -> None:
    model, features = tiny.model(), tiny.lm_features(6)
    batch = CausalLM().collate(features)
    with torch.no_grad():
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"])
        total, units = CausalLM().loss({"logits": output.logits}, batch)
        alone = [
            CausalLM().loss({"logits": model(CausalLM().collate([f])["input_ids"]).logits}, CausalLM().collate([f]))
            for f in features
        ]
    assert units == CausalLM().units(batch) == sum(len(f["input_ids"]) - 1 for f in features)
    torch.testing.assert_close(total / units, output.loss)
    assert float(total) == pytest.approx(sum(float(loss) for loss, _ in alone), rel=1e-5)


def test_predictions_hold_the_loss_of_each_example(tiny: ModuleType) -> None:
    model, batch = tiny.model(), CausalLM().collate(tiny.lm_features(6))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        total, units = CausalLM().loss({"logits": logits}, batch)
    kept = CausalLM().predictions({"logits": logits.numpy()}, {name: value.numpy() for name, value in batch.items()})
    assert kept["tokens"].sum() == units and kept["nll"].shape == (6,)
    assert kept["nll"].sum() == pytest.approx(float(total), rel=1e-5)


def test_metrics_weigh_tokens_not_examples() -> None:
    kept = {"nll": np.array([2.0, 9.0]), "tokens": np.array([1, 3])}
    found = CausalLM().metrics(kept, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found["cross_entropy"] == pytest.approx([11 / 4, 2.0])
    assert found["perplexity"] == pytest.approx(np.exp([11 / 4, 2.0]))
    assert found["bits_per_token"] == pytest.approx(np.array([11 / 4, 2.0]) / math.log(2))


def rows(*texts: str) -> list[dict[str, Any]]:
    return [{"input_ids": np.array([ord(c) - 97 for c in text])} for text in texts]


def test_baselines_by_hand() -> None:
    """Train a b a b a: predicted are b a b a (unigram: two each); pairs ab twice, ba twice."""
    found = CausalLM().baselines(rows("ababa"), rows("ab"))
    assert found["unigram"] == pytest.approx(-math.log(0.5))
    # count 2 - discount 0.5 of 2, and the 0.25 left goes half to b; larger discounts are worse here.
    assert found["bigram"] == pytest.approx(-math.log(1.5 / 2 + 0.25 * 0.5))


def test_bigram_distribution_sums_to_one() -> None:
    """A baseline that gives away more than all its mass would be unbeatable."""
    train = rows("abracadabra", "cadabra", "dab")
    for before in "abcdr":
        total = sum(math.exp(-CausalLM().baselines(train, rows(before + after, "zz"))["unigram"]) for after in "abcdr")
        assert total > 0
    # With one heldout pair the best smoothing is chosen for that pair, so each probability may come from another
    # model; over a whole heldout text one model is chosen, and it cannot beat the entropy of the pairs themselves.
    text = "abracadabra" * 20
    counts: dict[str, dict[str, int]] = {}
    for x, y in zip(text, text[1:], strict=False):
        counts.setdefault(x, {}).setdefault(y, 0)
        counts[x][y] += 1
    entropy = -sum(n * math.log(n / sum(after.values())) for after in counts.values() for n in after.values()) / (
        len(text) - 1
    )
    found = CausalLM().baselines(rows(text), rows(text))
    assert entropy < found["bigram"] < entropy + 0.05 < found["unigram"]


def test_soft_loss_is_zero_for_the_teacher_itself_and_ignores_padding(tiny: ModuleType) -> None:
    batch = CausalLM().collate(tiny.lm_features(4))
    logits = torch.randn(*batch["input_ids"].shape, 50, generator=torch.Generator().manual_seed(0))
    other = logits + 1
    other[batch["attention_mask"] == 0] = 99.0
    other[..., 0][batch["attention_mask"] == 0] = -99.0
    # Adding a constant to all logits leaves the distribution as it is; the padded places differ, and do not count.
    assert float(CausalLM().distillation_loss({"logits": logits}, {"logits": other}, batch, 2.0)) == pytest.approx(
        0, abs=1e-4
    )


def test_rows_longer_than_the_model_are_refused(jobs: ModuleType, tiny_inputs: Path) -> None:
    with pytest.raises(StageError, match="rows of 32 tokens do not fit a model of 16"):
        CausalLM().bound(Tokenizer(None, 16)).examples(jobs.artifact(tiny_inputs / "tokens", "tokens"), "train")


def test_a_missing_split_is_named(jobs: ModuleType, tiny_inputs: Path) -> None:
    with pytest.raises(StageError, match="no split 'dev'") as caught:
        CausalLM().bound(Tokenizer(None, 64)).examples(jobs.artifact(tiny_inputs / "tokens", "tokens"), "dev")
    assert "test, train, validation" in str(caught.value)


def test_samples_are_the_same_each_time(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    heldout = CausalLM().bound(Tokenizer(None, 64)).examples(jobs.artifact(tiny_inputs / "tokens", "tokens"), "test")
    model, tokenizer = tiny.model(vocabulary=320), load_tokenizer(tiny_inputs / "tokenizer")
    first = CausalLM().bound(Tokenizer(tokenizer, 512), config=model.config).samples(model, heldout)
    assert first == CausalLM().bound(Tokenizer(tokenizer, 512), config=model.config).samples(model, heldout)
    assert len(first) == 4 and all(sample["prompt"] and sample["continuation"] for sample in first)


def test_bits_a_byte_count_the_text_that_is_predicted(tiny_inputs: Path) -> None:
    """All of a text but its first token, in UTF-8; of a text that was cut, what is left of it."""
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None
    texts = ["red äpfel", "x 日本 \N{GRINNING FACE} ß", "a", "", "def f(x):\n    return x  # " * 3]
    for text, feature in zip(texts, measured_texts(texts, tokenizer, 200), strict=True):
        assert feature["input_ids"].tolist() == (tokenizer(text)["input_ids"] or [tokenizer.eos_token_id])
        first = tokenizer.decode(feature["input_ids"][:1].tolist()) if text else ""
        assert feature["bytes"] == len(text.encode()) - len(first.encode())
    (cut,) = measured_texts(texts[-1:], tokenizer, 8)
    assert len(cut["input_ids"]) == 8
    assert cut["bytes"] == len(tokenizer.decode(cut["input_ids"][1:].tolist()))
    predictions = {"nll": np.array([8.0, 2.0]), "tokens": np.array([2, 2]), "bytes": np.array([4, 6])}
    found = CausalLM().metrics(predictions, np.array([[1.0, 1.0], [2.0, 0.0]]))
    assert found["bits_per_byte"] == pytest.approx(np.array([1.0, 2.0]) / math.log(2))


# --- conversations ----------------------------------------------------------------------------------------------------

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
MARKED = (  # ChatML, telling transformers itself where the assistant speaks
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHANGING = "{% for m in messages %}{% if loop.last %}last {% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
TALK = [
    {"role": "user", "content": "What is red?"},
    {"role": "assistant", "content": "A   colour, é."},
    {"role": "user", "content": "And  assistant?"},
    {"role": "assistant", "content": "def f():\n    return 1\n"},
]


@pytest.fixture(scope="module")
def chat_tokenizer(tiny_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_inputs / "tokenizer")
    marks = ["<|im_start|>", "<|im_end|>", "<|start|>", "<|end|>", "<|eot|>"]
    # As GPT-2's and Llama 3's do: a token that is nothing but spaces then has empty offsets.
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    tokenizer.save_pretrained(folder)
    return folder


def conversations(whole_way: ModuleType, folder: Path, talks: list[Any]) -> Path:
    found: Path = whole_way.dataset(folder, {"messages": [json.dumps(talk) for talk in talks]})
    return found


@pytest.mark.parametrize(
    ("template", "answers"),
    [
        (CHATML, ["A   colour, é.<|im_end|>", "def f():\n    return 1\n<|im_end|>"]),
        (LLAMA3, ["A   colour, é.<|eot|>", "def f():\n    return 1<|eot|>"]),
        (LLAMA2, [" A   colour, é. <eos>", " def f():\n    return 1\n <eos>"]),
        (PLAIN, [" A   colour, é.\n", " def f():\n    return 1\n\n<eos>"]),
        (MARKED, ["A   colour, é.<|im_end|>", "def f():\n    return 1\n<|im_end|>"]),
    ],
    ids=["chatml", "llama3", "llama2", "plain", "marked"],
)
def test_the_counted_tokens_are_the_answers_with_their_end_of_turn(
    jobs: ModuleType, whole_way: ModuleType, chat_tokenizer: Path, tmp_path: Path, template: str, answers: list[str]
) -> None:
    data = jobs.artifact(conversations(whole_way, tmp_path / "d", [TALK] * 5), "dataset")
    tokenizer = load_tokenizer(chat_tokenizer)
    assert tokenizer is not None
    chosen = CausalLM(messages="messages", chat_template=template)
    feature = chosen.bound(Tokenizer(tokenizer, 500)).examples(data, "train")[0]
    stock = tokenizer.apply_chat_template(TALK, chat_template=template, return_dict=True)
    # PLAIN ends no turn: the end of text closes the last one, or the model would never learn to stop.
    closing = [tokenizer.eos_token_id] if template == PLAIN else []
    assert feature["input_ids"].tolist() == stock["input_ids"] + closing
    counted = feature["labels"] != -100
    assert (feature["labels"][counted] == feature["input_ids"][counted]).all()
    begins = np.flatnonzero(counted & ~np.r_[False, counted[:-1]])
    ends = np.flatnonzero(counted & ~np.r_[counted[1:], False]) + 1
    runs = [feature["input_ids"][a:b].tolist() for a, b in zip(begins, ends, strict=True)]
    assert [tokenizer.decode(run) for run in runs] == answers
    assert feature["bytes"] == sum(len(answer.encode()) for answer in answers) - len("<eos>") * len(closing)
    if template == MARKED:
        given = tokenizer.apply_chat_template(
            TALK, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        assert counted.tolist() == [bool(one) for one in given["assistant_masks"]]
    # A prompt as it is asked, and then what is counted: nothing between them.
    prompt = tokenizer.apply_chat_template(TALK[:3], chat_template=template, add_generation_prompt=True)["input_ids"]
    assert feature["input_ids"].tolist()[: begins[1]] == prompt


SPACED = "{% for m in messages %}{% if m.role == 'user' %}Q: {{ m.content }} A: {% else %}{{ m.content }}\n{% endif %}{% endfor %}"


def metaspace(legacy: bool) -> PreTrainedTokenizerFast:
    """As Llama 2 has it: a space before each text, written by the normalizer (legacy) or the pre-tokenizer."""
    words = ["<unk>", "</s>", "▁", *(f"▁{w}" for w in ("Q:", "A:", "yes", "no", "why?")), *"QA:yesnowh?\n"]
    raw = Backend(models.BPE({w: i for i, w in enumerate(dict.fromkeys(words))}, [], unk_token="<unk>"))
    if legacy:
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    else:
        raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(prepend_scheme="always"), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>", unk_token="<unk>", pad_token="</s>")


@pytest.mark.parametrize("kind", ["byte level", "metaspace", "legacy metaspace"])
def test_an_answer_begins_with_a_token_of_its_own_where_its_prompt_ends_inside_one(
    jobs: ModuleType, whole_way: ModuleType, chat_tokenizer: Path, tmp_path: Path, kind: str
) -> None:
    """The prompt as generation asks it, then the answer whole: its first token is learned as well."""
    tokenizer = load_tokenizer(chat_tokenizer) if kind == "byte level" else metaspace(kind.startswith("legacy"))
    assert tokenizer is not None
    talk = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "yes no"}]
    data = jobs.artifact(conversations(whole_way, tmp_path / "d", [talk] * 5), "dataset")
    chosen = CausalLM(messages="messages", chat_template=SPACED)
    feature = chosen.bound(Tokenizer(tokenizer, 500)).examples(data, "test")[0]
    prompt = chosen.bound(Tokenizer(tokenizer, 500)).requests(data, "test")[0].input_ids
    counted = feature["labels"] != -100
    assert feature["input_ids"][: len(prompt)].tolist() == prompt.tolist()
    assert counted.tolist() == [i >= len(prompt) for i in range(len(counted))]
    assert tokenizer.decode(feature["input_ids"][counted][:-1]) == "yes no\n"
    assert tokenizer.decode(feature["input_ids"][:-1]) == "Q: why? A: yes no\n", "no space was put in"
    assert feature["input_ids"][-1] == tokenizer.eos_token_id and feature["bytes"] == len("yes no\n")


def test_a_later_answer_begins_with_a_token_of_its_own_too(
    jobs: ModuleType, whole_way: ModuleType, chat_tokenizer: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(chat_tokenizer)
    assert tokenizer is not None
    data = jobs.artifact(conversations(whole_way, tmp_path / "d", [TALK] * 5), "dataset")
    whole = (
        CausalLM(messages="messages", chat_template=SPACED).bound(Tokenizer(tokenizer, 500)).examples(data, "test")[0]
    )
    counted = whole["labels"] != -100
    assert tokenizer.decode(whole["input_ids"][counted]) == "A   colour, é.\ndef f():\n    return 1\n\n<eos>"
    cut = CausalLM(messages="messages", chat_template=SPACED).bound(Tokenizer(tokenizer, 40)).examples(data, "test")[0]
    assert cut["input_ids"].tolist() == whole["input_ids"][:40].tolist()
    assert cut["labels"].tolist() == whole["labels"][:40].tolist(), "what was cut is not ended"


def test_texts_are_ended_so_that_a_model_learns_to_stop(jobs: ModuleType, tiny_inputs: Path) -> None:
    tokenizer = load_tokenizer(tiny_inputs / "tokenizer")
    assert tokenizer is not None
    data, end = jobs.artifact(tiny_inputs / "dataset", "dataset"), tokenizer.eos_token_id
    closed = CausalLM().bound(Tokenizer(tokenizer, 40)).examples(data, "test")
    bare = CausalLM(end_of_text=False).bound(Tokenizer(tokenizer, 40)).examples(data, "test")
    whole = 0
    for one, other in zip(closed, bare, strict=True):
        cut = len(other["input_ids"]) == 40
        assert one["input_ids"].tolist() == [*other["input_ids"].tolist(), *([] if cut else [end])]
        assert one["bytes"] == other["bytes"]
        whole += not cut
    assert 0 < whole < len(bare)
    changed = CausalLM().bound(Tokenizer(tokenizer, 40)).with_text({}, "def f(): pass")
    assert changed["input_ids"].tolist() == [*tokenizer("def f(): pass")["input_ids"], end]
    # A tokenizer that ends its texts itself ends them once.
    ended = load_tokenizer(tiny_inputs / "tokenizer")
    assert ended is not None
    ended.backend_tokenizer.post_processor = processors.TemplateProcessing("$A <eos>", special_tokens=[("<eos>", end)])
    again = CausalLM().bound(Tokenizer(ended, 41)).examples(data, "test")
    assert [int((row["input_ids"] == end).sum()) for row in again] == [1] * len(again)
    tokenizer.eos_token = None
    with pytest.raises(StageError, match="no end-of-text token") as caught:
        CausalLM().bound(Tokenizer(tokenizer, 40)).examples(data, "test")
    assert "end_of_text: false" in str(caught.value.hint)


def test_answers_that_are_cut_off_count_nothing_and_a_split_without_any_is_refused(
    jobs: ModuleType, whole_way: ModuleType, chat_tokenizer: Path, tmp_path: Path
) -> None:
    talks = [TALK, [{"role": "user", "content": "long " * 40}, {"role": "assistant", "content": "Yes."}]]
    data = jobs.artifact(conversations(whole_way, tmp_path / "d", talks * 5), "dataset", stage="chats")
    tokenizer = load_tokenizer(chat_tokenizer)
    chosen = CausalLM(messages="messages", chat_template=CHATML)
    features = chosen.bound(Tokenizer(tokenizer, 60)).examples(data, "train")
    batch = chosen.collate(features)
    counts = [int((f["labels"] != -100).sum()) for f in features]
    assert 0 in counts and max(counts) > 0 and chosen.units(batch) == sum(counts)
    logits = torch.randn(*batch["input_ids"].shape, 330, generator=torch.Generator().manual_seed(0))
    kept = chosen.predictions({"logits": logits.numpy()}, {name: value.numpy() for name, value in batch.items()})
    assert kept["tokens"].tolist() == counts and kept["nll"][counts.index(0)] == 0
    with pytest.raises(StageError, match="no token of an answer within 8 tokens: all labels would be ignored"):
        chosen.bound(Tokenizer(tokenizer, 8)).examples(data, "train")
    # Of a conversation, the count models are asked for the answers alone.
    found = chosen.baselines(features, [features[counts.index(max(counts))]])
    assert 0 < found["bigram"] < found["unigram"]


@pytest.mark.parametrize(
    ("talk", "template", "says"),
    [
        ("hello", CHATML, "'row000': it holds no list of messages"),
        ([], CHATML, "it holds no list of messages"),
        ([{"role": "user"}], CHATML, "message 1 has no text as `role` and `content`"),
        (
            TALK,
            "{% if messages %}{{ raise_exception('no system here') }}{% endif %}",
            "refuses its first 4 messages: no system here",
        ),
        (TALK, CHANGING, "in another way once message 2 follows"),
        (TALK, None, "the model's tokenizer has no chat template"),
        ([TALK[0]], CHATML, "all labels would be ignored"),
    ],
)
def test_conversations_it_cannot_learn_from_are_refused(
    jobs: ModuleType,
    whole_way: ModuleType,
    chat_tokenizer: Path,
    tmp_path: Path,
    talk: Any,
    template: str | None,
    says: str,
) -> None:
    data = jobs.artifact(conversations(whole_way, tmp_path / "d", [talk] * 5), "dataset", stage="chats")
    with pytest.raises(StageError) as caught:
        CausalLM(messages="messages", chat_template=template).bound(
            Tokenizer(load_tokenizer(chat_tokenizer), 200)
        ).examples(data, "validation")
    assert says in str(caught.value) and caught.value.hint


def test_options_and_data_that_do_not_fit_together_are_refused(jobs: ModuleType, tiny_inputs: Path) -> None:
    with pytest.raises(ValueError, match="name their column too"):
        objective({"name": "causal_lm", "chat_template": CHATML})
    chosen, tokens = CausalLM(messages="messages"), jobs.artifact(tiny_inputs / "tokens", "tokens")
    with pytest.raises(StageError, match="packed tokens have none"):
        chosen.bound(Tokenizer(None, 64)).examples(tokens, "train")


def test_a_model_without_a_tokenizer_has_no_samples(jobs: ModuleType, tiny: ModuleType, tiny_inputs: Path) -> None:
    """Nobody could read them; it is trained and judged all the same."""
    data, model = jobs.artifact(tiny_inputs / "tokens", "tokens"), tiny.model("gpt2", vocabulary=tiny.VOCABULARY)
    bound = CausalLM().bound(Tokenizer(None, 64), config=model.config)
    heldout = bound.examples(data, "test")
    assert bound.shown(model, heldout) == []
    known = bound.bound(Tokenizer(load_tokenizer(tiny_inputs / "tokenizer"), 64))
    assert known.shown(model, heldout) == known.samples(model, heldout) != []


STEPS = 12


def test_parity_with_a_bare_loop_over_hugging_faces_own_loss(parity: Any, tiny: ModuleType) -> None:
    """Few and many counted tokens an example, so that a mean of micro-batches' means would be another loss."""
    features = []
    for i, feature in enumerate(tiny.lm_features(40)):
        ids = feature["input_ids"]
        labels = np.where(np.arange(len(ids)) >= min(len(ids) - 1, 1 + 2 * (i % 6)), ids, -100)
        features.append({"input_ids": ids, "labels": labels if i % 7 else np.full(len(ids), -100), "bytes": 1})
    parity(CausalLM(messages="messages"), features, tiny.model, mean_loss=own_loss, falls=0.3)


def own_loss(model: Any, rows: Any, batch: Any) -> torch.Tensor:
    found: torch.Tensor = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    return found


@pytest.mark.parametrize("own", [False, True], ids=["given", "the-tokenizers"])
def test_conversations_go_the_whole_way_and_the_template_ships(
    jobs: ModuleType, tiny: ModuleType, whole_way: ModuleType, chat_tokenizer: Path, tmp_path: Path, own: bool
) -> None:
    """Which kind of word was asked for: to count pairs of tokens says nothing about it, to read the question does."""
    kinds = ("colour", "fruit", "animal", "verb")
    talks = [
        [
            {"role": "user", "content": f"What is {whole_way.WORDS[i % 12]}?"},
            {"role": "assistant", "content": kinds[i % 12 // 3]},
        ]
        for i in range(120)
    ]
    talks = [talks[int(i)] for i in np.random.default_rng(0).permutation(120)]
    data = conversations(whole_way, tmp_path / "data", talks)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(chat_tokenizer)
    if own:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = tiny.model("llama", AutoModelForCausalLM, vocabulary=len(tokenizer))
    base = whole_way.base(tmp_path / "base", tmp_path / "tokenizer", model, 48)
    template = {} if own else {"chat_template": CHATML}
    found = whole_way.go(
        jobs,
        tmp_path,
        {"name": "causal_lm", "messages": "messages", **template},
        base,
        data,
        finetune={"epochs": 8, "learning_rate": 1e-2},
        distill={"epochs": 4, "learning_rate": 1e-2},
        require=[{"metric": "cross_entropy", "max_drop": 1e-3, "confidence": 0.95}],
    )
    assert found["verdict"]["passed"]
    values = {n: m["metrics"]["cross_entropy"]["value"] for n, m in found["scores"]["models"].items()}
    assert values["teacher"] < 0.5 * found["scores"]["baselines"]["bigram"] and values["student"] < 1
    assert values["onnx"] == pytest.approx(values["student"], abs=1e-3)
    assert values["int8"] == pytest.approx(values["student"], abs=0.3)
    assert found["scores"]["models"]["onnx"]["metrics"]["bits_per_byte"]["value"] > 0
    for stage in ("teacher", "student", "onnx", "int8"):
        shipped = PreTrainedTokenizerFast.from_pretrained(tmp_path / stage / "output")
        assert shipped.apply_chat_template(TALK, tokenize=False) == tokenizer.apply_chat_template(
            TALK, chat_template=CHATML, tokenize=False
        )
    samples = json.loads((tmp_path / "teacher/records/samples.json").read_text())
    assert all(s["prompt"].endswith("<|im_start|>assistant\n") for s in samples)
    assert any(s["continuation"].startswith(kinds) for s in samples)

"""Tokenizers as folders on the hub have them: what masks, pads and ends is what AutoTokenizer says, and texts stay whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from infra.errors import StageError
from tasks.data.tokens import tokenizing
from tasks.data.tokens.encoding import Encoder
from tasks.objective import class_head, objective
from tasks.processors.given_tokenizer import ROLES, bring_tokenizer
from tasks.processors.padding import padding_id
from tasks.processors.tokenizer import load_tokenizer
from tasks.stages import pretrained

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet(), key=lambda c: (c != "!", c))
"""`!` comes first, and is token 0 of GPT-2."""
TEXT = "Some Texts, 3 of them!!!"
LONG = "word " * 500


def silent(sentence: str) -> None:
    raise AssertionError(sentence)


def write(folder: Path, type: str, tokenizer: Tokenizer | None = None, **config: Any) -> Path:
    """tokenizer_config.json as such folders have it: no token is named in it."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": type}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 64, **config}))
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def bert(folder: Path, *, vocabulary_only: bool = False) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz0123456789.,!", "text", "##s"]
    words += [f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz"]
    if vocabulary_only:
        write(folder, "bert", do_lower_case=True)
        (folder / "vocab.txt").write_text("\n".join(words) + "\n")
        return folder
    made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(words[:5])
    return write(folder, "bert", made, do_lower_case=True)


def byte_level(first: list[str], last: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE({token: i for i, token in enumerate([*first, *BYTES, *last])}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.add_special_tokens([*first, *last])
    return made


def gpt2(folder: Path) -> Path:
    return write(folder, "gpt2", byte_level([], ["<|endoftext|>"]))


def roberta(folder: Path) -> Path:
    made = byte_level(["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"])
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return write(folder, "roberta", made)


def t5(folder: Path) -> Path:
    """A sentencepiece model and nothing else."""
    import sentencepiece

    text = folder.parent / "text.txt"
    text.write_text("\n".join([TEXT, "some more words of it", "and others, 1234567890"] * 4))
    write(folder, "t5", extra_ids=0)
    sentencepiece.SentencePieceTrainer.train(
        input=str(text), model_prefix=str(folder / "spiece"), vocab_size=60, model_type="unigram", hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    return folder


@pytest.mark.parametrize(
    ("made", "roles"),
    [
        (bert, {"pad": "[PAD]", "mask": "[MASK]", "cls": "[CLS]", "sep": "[SEP]", "unk": "[UNK]"}),
        (lambda folder: bert(folder, vocabulary_only=True), {"pad": "[PAD]", "mask": "[MASK]", "unk": "[UNK]"}),
        (gpt2, {"eos": "<|endoftext|>", "bos": "<|endoftext|>"}),
        (roberta, {"pad": "<pad>", "mask": "<mask>", "eos": "</s>", "bos": "<s>", "cls": "<s>"}),
        (t5, {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}),
    ],
    ids=["bert", "bert-vocab", "gpt2", "roberta", "sentencepiece"],
)
def test_tokens_have_the_roles_that_autotokenizer_gives_them(
    tmp_path: Path, made: Callable[[Path], Path], roles: dict[str, str]
) -> None:
    folder, output = made(tmp_path / "given"), tmp_path / "output"
    output.mkdir()
    assert bring_tokenizer(folder, output, silent)
    theirs: Any = AutoTokenizer.from_pretrained(folder)
    for found in (load_tokenizer(output), AutoTokenizer.from_pretrained(output)):
        assert {role: getattr(found, role) for role in ROLES} == {role: getattr(theirs, role) for role in ROLES}
        assert {role: getattr(found, f"{role}_token") for role in roles} == roles
        assert found(TEXT)["input_ids"] == theirs(TEXT)["input_ids"] and found.model_max_length == 64


def test_a_tokenizer_json_that_cuts_and_pads_does_neither_here(tmp_path: Path) -> None:
    folder = gpt2(tmp_path / "given")
    cutting = Tokenizer.from_file(str(folder / "tokenizer.json"))
    whole = len(cutting.encode(LONG).ids)
    cutting.enable_truncation(8)
    cutting.enable_padding(length=8, pad_id=0, pad_token="!")
    cutting.save(str(folder / "tokenizer.json"))
    for config in (
        {"eos_token": "<|endoftext|>"},
        {"eos_token": "<|endoftext|>", "tokenizer_class": "TokenizersBackend"},
    ):
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        # As it stands in an artifact of before, and as it is brought now.
        output = tmp_path / f"output{len(config)}"
        output.mkdir()
        bring_tokenizer(folder, output, silent)
        saved = json.loads((output / "tokenizer.json").read_text())
        assert saved["truncation"] is None and saved["padding"] is None
        for place in (folder, output):
            raw, _ = tokenizing.load_tokenizer(place)
            assert Encoder(raw).by_library([LONG, "a"]).lengths.tolist() == [whole, 1]
            loaded: Any = load_tokenizer(place)
            assert len(loaded.backend_tokenizer.encode(LONG).ids) == len(loaded(LONG)["input_ids"]) == whole


def test_where_tokenizer_json_and_the_class_disagree_it_is_said(tmp_path: Path) -> None:
    folder = bert(tmp_path / "given")
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(state))
    said: list[str] = []
    (tmp_path / "output").mkdir()
    assert bring_tokenizer(folder, tmp_path / "output", said.append)
    assert len(said) == 1 and "which is taken as it is" in said[0]
    found: Any = load_tokenizer(tmp_path / "output")
    assert found("TEXT text", add_special_tokens=False).tokens() == ["[UNK]", "text"] and found.mask_token == "[MASK]"


def test_what_yields_no_tokenizer_is_said(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    assert not bring_tokenizer(write(tmp_path / "none", "bert"), tmp_path / "output", silent)
    folder = write(tmp_path / "broken", "t5")
    (folder / "spiece.model").write_bytes(b"no sentencepiece")
    said: list[str] = []
    assert not bring_tokenizer(folder, tmp_path / "output", said.append)
    assert "no tokenizer could be made of spiece.model in broken" in said[0]
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(StageError, match=r"broken: tokenizer\.json cannot be read"):
        bring_tokenizer(folder, tmp_path / "output", silent)


def test_padding_is_no_word(jobs: ModuleType, tiny: ModuleType, tmp_path: Path) -> None:
    """GPT-2 has no padding token, and its token 0 is `!`: once it padded, `3!!!` was read as `3`."""
    folder = gpt2(tmp_path / "given")
    model = tiny.model(
        "gpt2", AutoModelForSequenceClassification, vocabulary=257, pad_token_id=None, bos_token_id=256,
        eos_token_id=256, **class_head(["no", "yes"]),
    )  # fmt: skip
    model.save_pretrained(folder)
    chosen = objective({"name": "text_classification", "pooling": "model"})
    job = jobs.make_job(tmp_path / "job", pretrained.Params(folder=str(folder), objective=chosen))
    pretrained.run(job)
    tokenizer: Any = load_tokenizer(job.output)
    assert tokenizer.convert_ids_to_tokens(0) == "!"
    config = json.loads((job.output / "config.json").read_text())
    assert config["pad_token_id"] == 256 and tokenizer.pad_token is None
    ready = AutoModelForSequenceClassification.from_pretrained(job.output).eval()
    rows = [{"input_ids": tokenizer(text)["input_ids"]} for text in ("3", "3!!!", "what goes on longer!")]
    with torch.no_grad():
        batch = chosen.bound(config=ready.config).collate(rows)
        together = ready(**batch).logits
        alone = torch.cat([ready(torch.tensor([row["input_ids"]])).logits for row in rows])
    assert not torch.allclose(together[0], together[1], atol=1e-3)
    torch.testing.assert_close(together, alone)
    tokenizer.eos_token = tokenizer.bos_token = tokenizer.unk_token = None
    assert padding_id(None, None) is None
    with pytest.raises(StageError, match="nothing could pad a batch but a word"):
        padding_id(None, tokenizer)

"""A tokenizer that was made elsewhere, as transformers' AutoTokenizer has it, in the form of ours.

Folders on the hub often leave to AutoTokenizer which token masks, pads or ends: their tokenizer_config.json names none,
and some have no tokenizer.json at all. So AutoTokenizer reads them once, here, and everything else reads what it saved.
Where a tokenizer.json is there, it says how texts become tokens.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infra.errors import StageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja")
PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
VOCABULARY = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", *PIECES)
FILES = (*VOCABULARY, *SETTINGS)
"""All that AutoTokenizer may read of a folder, beside the model's config.json."""
AS_IT_IS = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Classes that take a tokenizer.json for what it is."""
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
CALL = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")
"""What transformers writes into tokenizer_config.json of a tokenizer that cuts or pads."""
PROBES = (
    "Hello, World! It's 2,024 times 3.5%.",
    "  two  spaces\n\ttab",
    "Déjà vu: ÄÖÜ ßtraße",
    "中文字 한국어",
    "snake_case don't",
)


def bring_tokenizer(folder: Path, output: Path, warn: Callable[[str], None]) -> bool:
    """Write the tokenizer in `folder` to `output`, neither cutting nor padding texts; False where there is none.

    warn: is called where tokenizer.json and AutoTokenizer disagree, and where files are there that yield no tokenizer.
    Raises StageError on a tokenizer.json that cannot be read.
    """
    here = [name for name in VOCABULARY if (folder / name).is_file()]
    if not here:
        return False
    if _as_it_is(folder):
        for name in FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, output / name)
    elif not _by_transformers(folder, output, here, warn):
        return False
    _whole_texts(output)
    return True


def _as_it_is(folder: Path) -> bool:
    """Whether AutoTokenizer would add nothing to the files, which saves an import of transformers (5 s)."""
    if not all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return False
    config = _object(folder / "tokenizer_config.json")
    alone = not any((folder / name).is_file() for name in ("special_tokens_map.json", "config.json"))
    return alone and config.get("tokenizer_class") in AS_IT_IS


def _by_transformers(folder: Path, output: Path, here: list[str], warn: Callable[[str], None]) -> bool:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    plain: Any = None
    if "tokenizer.json" in here:
        try:
            plain = PreTrainedTokenizerFast.from_pretrained(folder)
        except Exception as error:  # the library raises nothing more special
            raise StageError(
                f"tokenizer.json cannot be read: {_first_line(error)}",
                where=folder.name,
                hint="Fetch the file again, or save the tokenizer again with `save_pretrained`.",
            ) from error
    try:
        auto: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # a class of the folder's own code, or one that needs a library that is not there
        if plain is None:
            warn(f"no tokenizer could be made of {', '.join(here)} in {folder.name}, so the model reads no texts. Save "
                 "a tokenizer.json there: `AutoTokenizer.from_pretrained(...).save_pretrained(...)` where it can be "
                 f"loaded. ({type(error).__name__})")  # fmt: skip
            return False
        auto = plain
    if plain is not None and auto is not plain and (text := _differs(auto, plain)) is not None:
        difference = "has other tokens" if text == "" else f"reads {text!r} otherwise"
        warn(f"AutoTokenizer {difference} than the tokenizer.json in {folder.name}, which is taken as it is. If "
             "AutoTokenizer is right, save its tokenizer there with `save_pretrained`.")  # fmt: skip
        known = plain.get_vocab()
        for role in ROLES:
            if getattr(plain, role) is None and getattr(auto, role) in known:
                setattr(plain, role, getattr(auto, role))
        auto = plain
    if not getattr(auto, "is_fast", False):
        warn(f"{folder.name} has a tokenizer of a kind that has no tokenizer.json ({type(auto).__name__}), so the "
             "model reads no texts.")  # fmt: skip
        return False
    auto.save_pretrained(output)
    return True


def _differs(auto: PreTrainedTokenizerFast, plain: PreTrainedTokenizerFast) -> str | None:
    """A text that the two encode differently, "" where they have other tokens, None where they agree."""
    if auto.get_vocab() != plain.get_vocab():
        return ""
    return next((text for text in PROBES if auto(text)["input_ids"] != plain(text)["input_ids"]), None)


def _whole_texts(folder: Path) -> None:
    """Switch off the truncation and the padding that tokenizer.json may ask for: whoever encodes decides."""
    for name, off in (("tokenizer.json", {"truncation": None, "padding": None}), ("tokenizer_config.json", None)):
        if not (folder / name).is_file():
            continue
        state = _object(folder / name)
        kept = {**state, **off} if off is not None else {key: one for key, one in state.items() if key not in CALL}
        if kept != state:
            (folder / name).write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StageError(f"{path.name} is no JSON: {error}", where=path.parent.name, hint="Fetch it again.") from error
    if not isinstance(found, dict):
        raise StageError(f"{path.name} is no JSON object", where=path.parent.name, hint="Fetch it again.")
    return found


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__

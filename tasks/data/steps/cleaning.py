"""Unicode repair and length limits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from tasks.stage import StageParams

PLAIN = re.compile(r"[\n\t -~]*")
"""Text that ftfy, which takes it line by line, has nothing to do with."""


class Clean(StageParams):
    """What is done to each text before anything else looks at it."""

    unicode: Literal["nfc", "ftfy", "none"] = Field(
        "nfc",
        description="`nfc`: normal form. `ftfy`: also repairs text decoded wrongly (`schÃ¶n`), control characters and "
        "line breaks. `none`: as it is.",
    )
    min_chars: int = Field(1, ge=0, description="Shorter texts (in characters) are dropped.")
    max_chars: int | None = Field(None, ge=1, description="Longer texts are dropped. None: no limit.")

    @model_validator(mode="after")
    def _ordered(self) -> Clean:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("max_chars is smaller than min_chars")
        return self


def repair(kind: str) -> Callable[[str], str]:
    """Text -> text in the form that `Clean.unicode` names."""
    if kind == "ftfy":
        import ftfy

        # What looks like markup stays: `&amp;` in a text may be meant.
        settings = ftfy.TextFixerConfig(unescape_html=False, explain=False)
        return lambda text: text if PLAIN.fullmatch(text) else ftfy.fix_text(text, settings)
    return (lambda text: unicodedata.normalize("NFC", text)) if kind == "nfc" else (lambda text: text)


def length_fault(text: str, settings: Clean) -> str | None:
    """Why a text's length rules it out, or None."""
    if not text.strip():
        return "empty"
    if len(text) < settings.min_chars:
        return f"shorter than {settings.min_chars} characters"
    if settings.max_chars is not None and len(text) > settings.max_chars:
        return f"longer than {settings.max_chars} characters"
    return None

"""Text normalisation and length limits, each drop with its reason."""

from __future__ import annotations

import unicodedata
from collections import Counter
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from tasks.data.reading import Row
from tasks.stage import StageParams


class Clean(StageParams):
    """What is done to each text before anything else looks at it."""

    unicode: Literal["nfc", "none"] = Field("nfc", description="Unicode normal form; `none` leaves the text as it is.")
    min_chars: int = Field(1, ge=0, description="Shorter texts (in characters) are dropped.")
    max_chars: int | None = Field(None, ge=1, description="Longer texts are dropped. None: no limit.")

    @model_validator(mode="after")
    def _ordered(self) -> Clean:
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError("max_chars is smaller than min_chars")
        return self


def clean(rows: list[Row], settings: Clean) -> tuple[list[Row], Counter[str]]:
    """The rows that stay, normalised, and how many went for which reason."""
    kept, dropped = [], Counter[str]()
    for row in rows:
        text = unicodedata.normalize("NFC", row.text) if settings.unicode == "nfc" else row.text
        if not text.strip():
            dropped["empty"] += 1
        elif len(text) < settings.min_chars:
            dropped[f"shorter than {settings.min_chars} characters"] += 1
        elif settings.max_chars is not None and len(text) > settings.max_chars:
            dropped[f"longer than {settings.max_chars} characters"] += 1
        else:
            kept.append(row if text is row.text else replace(row, text=text))
    return kept, dropped

"""Which language a text is in, by py3langid, whose model (Lui and Baldwin, 2012, renewed) comes with it."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from pydantic import Field, field_validator

from tasks.stage import StageParams

# fmt: off
LANGUAGES = (
    "af", "am", "ar", "as", "az", "be", "bg", "bn", "br", "bs", "ca", "cs", "cy", "da", "de", "el", "en", "eo",
    "es", "et", "eu", "fa", "fi", "fr", "fy", "ga", "gd", "gl", "gu", "ha", "he", "hi", "hr", "ht", "hu", "hy",
    "id", "ig", "is", "it", "ja", "jv", "ka", "kk", "km", "kn", "ko", "ku", "ky", "la", "lg", "ln", "lo", "lt",
    "lv", "mg", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn", "no", "oc", "om", "or", "pa", "pl",
    "ps", "pt", "qu", "ro", "ru", "rw", "sa", "se", "si", "sk", "sl", "sn", "so", "sq", "sr", "st", "sv", "sw",
    "ta", "te", "tg", "th", "tk", "tl", "tr", "tt", "ug", "uk", "ur", "uz", "vi", "vo", "wa", "wuu", "xh", "yo",
    "yue", "zh",
)
# fmt: on
LONGEST = 4000
"""Characters looked at; more say nothing new."""


class Language(StageParams):
    """Which languages stay."""

    keep: list[str] = Field(min_length=1, description="ISO 639 codes of the languages that stay.")
    min_confidence: float = Field(
        0.65, ge=0, le=1, description="Probability of the language found below which a text is dropped."
    )

    @field_validator("keep")
    @classmethod
    def _known(cls, keep: list[str]) -> list[str]:
        for code in keep:
            if code not in LANGUAGES:
                near = difflib.get_close_matches(code, LANGUAGES, n=1, cutoff=0.4)
                raise ValueError(f"unknown language {code!r}{f'; did you mean {near[0]}?' if near else ''}")
        return keep


def detector() -> Callable[[str], tuple[str, float]]:
    """text -> (ISO 639 code, probability)."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def detect(text: str) -> tuple[str, float]:
        code, probability = identifier.classify(text[:LONGEST])
        return str(code), float(probability)

    return detect


def language_fault(found: tuple[str, float], settings: Language) -> str | None:
    """Why a text's language rules it out, or None."""
    code, probability = found
    if probability < settings.min_confidence:
        return "language unclear"
    return None if code in settings.keep else f"language {code}"

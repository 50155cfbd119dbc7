"""Which language a text is in, by py3langid, whose model (Lui and Baldwin, 2012, renewed) comes with it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache

from pydantic import Field, field_validator

from tasks.stage import StageParams

# fmt: off
LANGUAGES = (
    "ace", "af", "am", "an", "ar", "ary", "arz", "as", "az", "ba", "bcl", "be", "bg", "bn", "br", "bs", "ca", "crh",
    "cs", "cy", "da", "de", "dz", "el", "en", "eo", "es", "et", "eu", "ext", "fa", "fi", "fo", "fr", "fuv", "fy",
    "ga", "gcf", "gcr", "gd", "gl", "gom", "grc", "gu", "gug", "guw", "ha", "hbo", "he", "hi", "hr", "ht", "hu",
    "hy", "id", "ig", "is", "it", "ja", "jv", "ka", "kab", "kik", "kk", "km", "kn", "ko", "ku", "ky", "la", "lb",
    "lg", "lij", "ln", "lo", "lt", "ltg", "lv", "mg", "mk", "ml", "mn", "mr", "ms", "mt", "my", "ne", "nl", "nn",
    "no", "nso", "oc", "om", "or", "pa", "pcm", "pl", "ps", "pt", "qu", "ro", "ru", "rw", "sa", "sdh", "se", "si",
    "sk", "sl", "sn", "so", "sq", "sr", "st", "sv", "sw", "ta", "te", "tg", "th", "tk", "tl", "tr", "tt", "ug",
    "uk", "ur", "uz", "uzs", "vec", "vi", "vo", "wa", "wuu", "xh", "yo", "yue", "zh", "zu", "zxx",
)
# fmt: on
NO_LANGUAGE = "zxx"
"""What the model calls text that is none, such as base64."""
LONGEST = 4000
"""Characters looked at; more say nothing new."""


class Language(StageParams):
    """Which languages stay."""

    keep: list[str] = Field(
        min_length=1, description="ISO 639 codes of the languages that stay; `zxx` is no language, such as base64."
    )
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


@cache
def detector() -> Callable[[str], tuple[str, float]]:
    """text -> (ISO 639 code, probability). The model takes half a second to load: a process does it once."""
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
    if code in settings.keep:
        return None
    return "no language (zxx)" if code == NO_LANGUAGE else f"language {code}"

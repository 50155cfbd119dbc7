"""Encoded images and sounds: whether their header can be read, and how large they are. Nothing is decoded.

Pillow is in the extra `vision`, soundfile in `audio`.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Collection, Mapping

from infra.errors import StageError

EXTRAS = {"image": ("PIL", "Pillow", "vision"), "audio": ("soundfile", "soundfile", "audio")}
"""Column type -> the module that reads it, the name of its package, and the extra of Forgeline that brings it."""


def missing_reader(kinds: Collection[str]) -> str:
    """A sentence on what has to be installed for columns of these types; empty where nothing is missing."""
    for kind, (module, package, extra) in EXTRAS.items():
        if kind in kinds and importlib.util.find_spec(module) is None:
            return f"columns of type {kind} need {package}: pip install 'forgeline[{extra}]'"
    return ""


def image_size(raw: bytes) -> dict[str, float]:
    """`width` and `height` in pixels, from the header. Raises ValueError on what is no image, or a damaged one."""
    try:
        from PIL import Image
    except ImportError as error:
        raise _not_installed("image") from error
    try:
        with Image.open(io.BytesIO(raw)) as image:
            width, height = image.size
            image.verify()
    except Exception as error:  # each of Pillow's decoders raises errors of its own on damaged bytes
        raise ValueError(f"no image: {error}") from error
    return {"width": float(width), "height": float(height)}


def audio_size(raw: bytes) -> dict[str, float]:
    """`seconds` and `rate` (samples a second), from the header. Raises ValueError on what is no sound."""
    try:
        import soundfile
    except (ImportError, OSError) as error:  # OSError: its library is missing
        raise _not_installed("audio") from error
    try:
        found = soundfile.info(io.BytesIO(raw))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"no audio: {error}") from error
    if not found.samplerate or not found.frames:
        raise ValueError("no audio: it has no sample")
    return {"seconds": found.frames / found.samplerate, "rate": float(found.samplerate)}


SIZES: Mapping[str, Callable[[bytes], dict[str, float]]] = {"image": image_size, "audio": audio_size}
"""Column type -> what is measured of its values."""


def _not_installed(kind: str) -> StageError:
    return StageError(
        missing_reader([kind]) or f"columns of type {kind} cannot be read here: {EXTRAS[kind][1]} is broken",
        where="sources",
        hint="Install it where the stage runs, and on every worker.",
    )

"""Encoded images and sounds: whether they can be read, and how large they are.

An image is decoded once, when its row is read: a header says nothing of a file that was cut off behind it, and a
training would meet that late. Of a sound the header is read.

Pillow is in the extra `vision`, soundfile in `audio`.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from infra.errors import StageError

if TYPE_CHECKING:
    from PIL.Image import Image

EXTRAS = {"image": ("PIL", "Pillow", "vision"), "audio": ("soundfile", "soundfile", "audio")}
"""Column type -> the module that reads it, the name of its package, and the extra of Forgeline that brings it."""

WIDE = ("I", "F")
"""Pillow's modes of pictures whose values have 32 bits and no scale that all programs agree on."""


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


def check_image(raw: bytes) -> None:
    """Raises ValueError, saying why, where the first frame cannot be decoded to values of up to 16 bits."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise _not_installed("image") from error
    if not raw:
        raise ValueError("it has no bytes")
    try:
        with Image.open(io.BytesIO(raw)) as image:
            image.draft(None, (1, 1))  # a JPEG is read to its end, and most of the arithmetic left out
            image.load()
            mode = image.mode
    except UnidentifiedImageError as error:  # its message holds an address in memory
        raise ValueError("of no format that Pillow knows") from error
    except Exception as error:  # each of Pillow's decoders raises errors of its own on damaged bytes
        raise ValueError(str(error) or type(error).__name__) from error
    if mode in WIDE:
        raise ValueError(f"its values have 32 bits (mode {mode}): save it with 8 or 16")


def upright(picture: Image) -> Image:
    """A picture turned as its EXIF says, of values with eight bits: of sixteen the upper ones count."""
    import numpy as np
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(picture)
    if not turned.mode.startswith("I;16"):
        return turned
    return Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))  # Pillow itself would cut them off at 255


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

CHECKS: Mapping[str, Callable[[bytes], object]] = {"image": check_image, "audio": audio_size}
"""Column type -> what raises ValueError, saying why, on a value that is none."""


def _not_installed(kind: str) -> StageError:
    return StageError(
        missing_reader([kind]) or f"columns of type {kind} cannot be read here: {EXTRAS[kind][1]} is broken",
        where="sources",
        hint="Install it where the stage runs, and on every worker.",
    )

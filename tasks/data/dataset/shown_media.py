"""Images and sounds as a page shows them: inside it, as data URLs of at most 64 KB."""

from __future__ import annotations

import base64
import io
import re

from tasks.data.reading.media import upright

PICTURES = {b"\x89PNG\r\n": "image/png", b"\xff\xd8\xff": "image/jpeg", b"GIF8": "image/gif"}
SOUNDS = {b"RIFF": "audio/wav", b"fLaC": "audio/flac", b"OggS": "audio/ogg", b"ID3": "audio/mpeg"}
LARGEST_PICTURE = 64 << 10
"""Bytes of an image or a sound that is shown in the card itself."""
PICTURE_URL = re.compile(rf"data:image/(png|jpeg|gif);base64,[A-Za-z0-9+/]{{1,{-(-LARGEST_PICTURE // 3) * 4}}}={{0,2}}")
"""What a page may show as a picture: one of those within the page, never an address and never SVG."""
LONGEST_SIDE = 160
"""Pixels of a thumbnail."""


def thumbnail(raw: bytes) -> str | None:
    """An image as a data URL: as it is where it is small, else a small copy of it. None where it cannot be decoded."""
    if (shown := _as_it_is(raw, PICTURES)) is not None:
        return shown
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw)) as image:
            small = upright(image).convert("RGB")
            small.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
            out = io.BytesIO()
            small.save(out, "JPEG", quality=80)
    except Exception:  # only its header was checked: what is behind it can fail each decoder in a way of its own
        return None
    return _data_url(out.getvalue(), "image/jpeg")


def playable(raw: bytes) -> str | None:
    """A sound as a data URL; of a long one its beginning, as WAV of 16 bits. None where it cannot be decoded."""
    if (shown := _as_it_is(raw, SOUNDS)) is not None:
        return shown
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(raw)) as sound:
            room = LARGEST_PICTURE - 1024  # for the header
            samples = sound.read(room // (2 * sound.channels), dtype="int16")
            out = io.BytesIO()
            soundfile.write(out, samples, sound.samplerate, format="WAV", subtype="PCM_16")
    except RuntimeError:  # soundfile's own errors are of this kind
        return None
    return _data_url(out.getvalue(), "audio/wav")


def _as_it_is(raw: bytes, kinds: dict[bytes, str]) -> str | None:
    kind = next((kind for magic, kind in kinds.items() if raw.startswith(magic)), None)
    return _data_url(raw, kind) if kind is not None and len(raw) <= LARGEST_PICTURE else None


def _data_url(raw: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(raw).decode()}"

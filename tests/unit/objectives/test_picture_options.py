"""What objectives that read pictures refuse, rather than read wrongly."""

import io

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from tasks.objective import objective
from tasks.processors.image import ImageProcessor


def test_two_channels_are_no_picture() -> None:
    with pytest.raises(ValidationError, match=r"1 channel \(grey\) or 3"):
        objective({"name": "image_classification", "channels": 2})
    for channels in (1, 3):
        assert objective({"name": "image_classification", "channels": channels}).model_dump()["channels"] == channels


def test_of_sixteen_bits_the_upper_eight_count() -> None:
    written = io.BytesIO()
    Image.fromarray(np.full((4, 4), 40000, np.uint16)).save(written, "PNG")
    pixels = ImageProcessor(4, (0.5,), (0.5,)).pixels(written.getvalue())
    assert (pixels == 40000 >> 8).all()

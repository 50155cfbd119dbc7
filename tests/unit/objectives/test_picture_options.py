"""Options of objectives that read pictures are refused while the pipeline file is read."""

import pytest
from pydantic import ValidationError

from tasks.objective import objective


def test_two_channels_are_no_picture() -> None:
    with pytest.raises(ValidationError, match=r"1 channel \(grey\) or 3"):
        objective({"name": "image_classification", "channels": 2})
    for channels in (1, 3):
        assert objective({"name": "image_classification", "channels": channels}).model_dump()["channels"] == channels

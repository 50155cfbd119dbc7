"""Which values quantized weights can have, in the words that `quantize` and `qat` share."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.stage import StageParams


class GridParams(StageParams):
    """How finely, and which layers not."""

    group_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="For `int4`: weights of a row, side by side, that share a scale and a zero point."
    )
    per_channel: bool = Field(
        False,
        description="For int8: a scale for each output channel, not one per tensor. Convolutions always have that.",
    )
    reduce_range: bool = Field(
        True,
        description="For int8: weights use seven of the eight bits. CPUs without VNNI overflow otherwise, silently; on "
        "those that have it, false is a little more accurate.",
    )
    keep_float: list[str] = Field(
        default_factory=list,
        description="Layers that stay in floating point: names as in the model, `*` for any text: `classifier*`.",
    )

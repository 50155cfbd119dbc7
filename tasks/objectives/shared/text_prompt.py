"""What a model that writes texts is asked to write on from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.objective import Request

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Prompt(Request):
    """What a model writes on from. input_ids: [T], no longer than was asked for; tokens: how many the whole prompt has.

    ends: ids of tokens that end an answer, beside the model's own.
    """

    input_ids: npt.NDArray[np.integer]
    tokens: int
    ends: tuple[int, ...] = ()

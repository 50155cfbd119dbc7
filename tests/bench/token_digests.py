"""What two arms that tokenized the same texts are compared by."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt


def token_digests(ids: npt.NDArray[Any], lengths: npt.NDArray[Any]) -> dict[str, str]:
    """Digests of the ids of all texts, one after another, and of how many each has; of whatever integer type."""
    of = {"ids": ids.astype(np.uint32), "lengths": lengths.astype(np.int64)}
    return {name: hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest() for name, values in of.items()}

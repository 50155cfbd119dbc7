"""What an evaluation finds out about one model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass
class Measured:
    """What was found out about one model."""

    predictions: dict[str, npt.NDArray[Any]]
    parameters: int
    peak_memory_mb: float
    latency_ms: dict[int, list[float]] = field(default_factory=dict)
    point: dict[str, float] = field(default_factory=dict)
    replicates: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)
    samples: list[dict[str, str]] = field(default_factory=list)

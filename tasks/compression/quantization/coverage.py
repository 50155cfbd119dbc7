"""Which layers a scheme leaves in floating point because the runtime has no form for them; that is never silent."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from infra.errors import StageError
from tasks.compression.onnx.operators import OPERATORS

MOST = 0.5
"""The share of a model's weights that may be left over. A transformer's one convolution is far below it."""


def without_form(layers: Mapping[str, tuple[str, int]], scheme: str, *, where: str) -> list[str]:
    """Names of the layers that `scheme` leaves in floating point, said in the log.

    layers: name -> (ONNX operator, numbers in its weight). Raises StageError where these are most of the weights: what
    is left to quantize would be little more than the head.
    """
    left = [name for name, (operator, _) in layers.items() if scheme not in OPERATORS[operator].schemes]
    if not left:
        return []
    share = sum(layers[name][1] for name in left) / sum(size for _, size in layers.values())
    what = (
        f"{scheme} has no form for convolutions: {len(left)} of {len(layers)} layers, {share:.0%} of the weights, "
        "stay in floating point"
    )
    if share > MOST:
        raise StageError(
            what, where=where, hint="Use `scheme: static_int8`, which quantizes them; or, in `quantize`, `float16`."
        )
    logging.getLogger(__name__).warning("%s: %s", what, ", ".join(left))
    return left

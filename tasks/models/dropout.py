"""The dropout rates of a model, whatever its family calls them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.errors import StageError

ENDINGS = ("dropout", "_pdrop", "dropout_prob", "dropout_rate")


def dropout_fields(folder: Path, rate: float | None) -> dict[str, Any]:
    """Config fields that set every dropout of the model in `folder` to `rate`; none where it is None.

    Raises StageError if the model has no dropout.
    """
    if rate is None:
        return {}
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder).to_dict()
    names = [
        n for n, value in config.items() if n.endswith(ENDINGS) and (value is None or isinstance(value, int | float))
    ]
    if not names and rate:
        raise StageError(f"a {config['model_type']} has no dropout", where="dropout", hint="Leave it out.")
    return dict.fromkeys(sorted(names), rate)

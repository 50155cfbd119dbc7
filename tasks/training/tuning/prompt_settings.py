"""What a pipeline says of a prompt that is learned; `tasks/training/tuning/prompt_tuning.py` learns it."""

from __future__ import annotations

from pydantic import Field

from tasks.stage import StageParams


class Prompt(StageParams):
    """Vectors before every text, which learn while the network does not."""

    tokens: int = Field(16, ge=1, description="How many; they count in `max_length`.")
    text: str | None = Field(
        None, min_length=1, description="They begin as the words of this text, over and over. None: as random words."
    )

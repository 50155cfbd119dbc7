"""What an error passes on of other libraries' words."""

from __future__ import annotations

import pytest

from infra.errors import StageError


@pytest.mark.parametrize(
    "advice",
    [
        "Re-running `torch.load` with `weights_only` set to `False` will likely succeed.",
        "Please use `torch.serialization.add_safe_globals([A])` to allowlist this global.",
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
        "Object arrays cannot be loaded when allow_pickle=True is not set.",
        "we changed the default value of the `weights_only` argument from `False` to `True`.",
    ],
)
def test_advice_to_run_code_is_left_out(advice: str) -> None:
    shown = str(StageError(f"The file is no model. {advice} See the docs.", where="a"))
    assert shown.startswith("a: The file is no model. See the docs.") and advice[:20] not in shown
    assert "advice to run code that the file brings along is left out" in shown


def test_other_words_stay_as_they_are() -> None:
    said = "stages.a.trust_remote_code: unknown field.\n  did you mean: `true`?"
    assert str(StageError(said)) == said

"""Which candidates of a search to try next, given what those before them reached: Optuna proposes.

Nothing is kept between commands: draws are replayed from a search's seed over the results in the store, so that a
search which was cut short goes on where it was, and one whose results are all there draws nothing new.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from infra.errors import UsageError
from tasks.pipeline.search_space import Choice, Pick, Trials

if TYPE_CHECKING:
    from optuna import Trial

Path = tuple[Choice, ...]
Result = tuple[float, float] | None
"""Goodness (more is better) and MB of a candidate; None: a screen dropped it."""
REPEATS = 5
"""Draws for each trial after which a space counts as used up: the sampler keeps to what it has."""


def draw(
    trials: Trials,
    results: Mapping[str, Result],
    path: Callable[[Pick], Path],
    name_of: Callable[[Path], str | None],
) -> tuple[list[Path], bool]:
    """The paths drawn so far, and whether that is all there will be.

    path: draws one. name_of: its candidate (None: it leaves the model as it is). results: of the candidates that are
    made; as soon as a draw's is not among them, draws end. A third is drawn at random, the rest by a tree-structured
    Parzen estimator over quality and size (Bergstra et al., 2011; Ozaki et al., 2020). Raises UsageError where Optuna
    is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UsageError(
            "trials of a search need Optuna, which is not installed", hint="pip install 'forgeline[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    at_random = max(trials.at_once, trials.number // 3)
    sampler = optuna.samplers.TPESampler(seed=trials.seed, n_startup_trials=at_random)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    drawn: dict[str, Path] = {}
    for _ in range(REPEATS * trials.number):
        asked = []
        for _ in range(min(trials.at_once, trials.number - len(drawn))):
            trial = study.ask()
            taken = path(_pick(trial))
            asked.append((trial, name_of(taken), taken))
        drawn |= {name: taken for _, name, taken in asked if name}
        if any(name not in results for name in drawn):
            return list(drawn.values()), False
        for trial, name, _ in asked:
            found = results[name] if name else None
            study.tell(trial, found, state=None if found else optuna.trial.TrialState.FAIL)
        if len(drawn) == trials.number:
            break
    return list(drawn.values()), True


def _pick(trial: Trial) -> Pick:
    def pick(name: str, among: list[str] | tuple[float, float]) -> Any:
        if isinstance(among, list):
            return trial.suggest_categorical(name, among)
        low, high = among
        suggest: Any = trial.suggest_int if isinstance(low, int) and isinstance(high, int) else trial.suggest_float
        return suggest(name, low, high)

    return pick

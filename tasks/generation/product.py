"""The contract of what models produce. Stages `generate` and `pseudo_label` work with every kind of product through it.

A kind is a folder `tasks/generation/<kind>/`; living there is its registration. Its `product.py` defines a subclass of
`Product` and `PRODUCT = <that class>`; an objective names its kind in `produces`. Stages pair models with examples, run
one process a model, resample and keep evidence. How something is produced, and what its scores are made of, they ask
here. Only light imports at the top of `product.py`: `forgeline plan` reads them all.

Shapes: N examples, R bootstrap resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from infra.errors import StageError
from tasks.stage import StageParams

if TYPE_CHECKING:
    import numpy.typing as npt

    from infra.execution import Execution
    from tasks.objective import Objective, Request
    from tasks.stage import InputArtifact


class Output(Protocol):
    """What was made for the request at `place`. `finished`: it ended by itself, not because it became too long."""

    @property
    def place(self) -> int: ...
    @property
    def finished(self) -> bool: ...
    @property
    def size(self) -> int:
        """How much it is, in the product's `unit`."""
        ...

    def record(self) -> dict[str, Any]:
        """The output as JSON, for `outputs.jsonl`."""
        ...


@dataclass(frozen=True)
class Described:
    """What a stage needs to know of a producer that runs in another process. parameters: of the model."""

    batches: int
    requests: list[Request]
    parameters: int
    device: str


class Producer(Protocol):
    """One model and its requests. Which of them are produced together, and in which order, is the producer's choice."""

    @property
    def requests(self) -> Sequence[Request]: ...

    def described(self) -> Described: ...

    def produce(self, batch: int) -> tuple[list[Any], float]:
        """(an `Output` for each request of one batch, seconds it took)."""
        ...


class Product:
    """One kind, with the settings of a stage.

    post_process: the steps an output goes through before it is scored; a reference never does. Raises StageError where
    the settings are those of another kind.
    """

    unit: ClassVar[str]
    """What an output's `size` counts: speed is measured in it."""
    settings: ClassVar[type[StageParams]]
    """The type of `decoding`."""
    step: ClassVar[Any]
    """The type of a step of `post_process`."""
    metric_names: ClassVar[tuple[str, ...]]
    neutral: ClassVar[frozenset[str]] = frozenset()
    """Metrics of which neither more nor less is better."""

    def __init__(self, decoding: StageParams, post_process: Sequence[Any] = ()) -> None:
        if not isinstance(decoding, self.settings):
            raise StageError(
                f"these settings are not for what the model produces, which is {type(self).__name__.lower()}",
                where="decoding",
                hint=f"Its settings: {', '.join(self.settings.model_fields)}.",
            )
        self.decoding: Any = decoding
        self.warnings: list[str] = []

    def require_packages(self, metrics: Sequence[str]) -> None:
        """Raises StageError where the package of a metric is not installed."""

    def producer(
        self,
        model: InputArtifact,
        data: InputArtifact,
        split: str,
        objective: Objective,
        execution: Execution,
        *,
        limit: int | None = None,
        truncation: bool = False,
        threads: int,
    ) -> Producer:
        """The model, loaded. limit: of requests, the first of the split. truncation: cut requests that are too long."""
        raise NotImplementedError

    def statistics(
        self, outputs: Sequence[Any], requests: Sequence[Request], metrics: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        """What scores are made of: arrays of one row an example, [N] or [N, ...]."""
        raise NotImplementedError

    def metrics(
        self, statistics: Mapping[str, npt.NDArray[Any]], weights: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[Any]]:
        """Metric name -> [R], under example weights [R, N]."""
        raise NotImplementedError

    def baselines(self, requests: Sequence[Request], metric: str) -> dict[str, float]:
        """Scores of answers that need no model."""
        raise NotImplementedError

    def shown(self, output: Any) -> str:
        """The output for people, post-processed."""
        raise NotImplementedError

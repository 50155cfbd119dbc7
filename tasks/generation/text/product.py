"""Texts that models write on from prompts, scored against texts that people wrote.

Every model has `length_ratio`, the characters of its outputs over those of the references, and `unfinished`, the share
of outputs that `max_new_tokens` cut off. Baseline `copy` answers with the prompt's own text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from tasks.generation.product import Product
from tasks.generation.text.decoding import Decoding
from tasks.generation.text.post_process import PostProcess, Step
from tasks.metrics.written_text import TextMetric, require_packages, text_metrics, text_statistics

if TYPE_CHECKING:
    import numpy.typing as npt

    from infra.execution import Execution
    from tasks.generation.text.writer import Output, Writer
    from tasks.objective import Objective, Request
    from tasks.stage import InputArtifact, StageParams


class Text(Product):
    unit = "tokens"
    settings = Decoding
    step = Step
    metric_names = get_args(TextMetric)
    neutral = frozenset({"length_ratio"})  # 1 is best

    def __init__(self, decoding: StageParams, post_process: Sequence[Step] = ()) -> None:
        super().__init__(decoding, post_process)
        self._process = PostProcess(post_process)

    def require_packages(self, metrics: Sequence[str]) -> None:
        require_packages(metrics)

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
    ) -> Writer:
        from tasks.generation.text.writer import Writer

        return Writer(
            model, data, split, objective, self.decoding, execution,
            limit=limit, truncation=truncation, threads=threads,
        )  # fmt: skip

    def statistics(
        self, outputs: Sequence[Output], requests: Sequence[Request], metrics: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        found = self._scored([output.text for output in outputs], requests, metrics)
        if late := len(self._process.late):
            self.warnings = [
                f"in {late} outputs a pattern of `post_process` took too long to find an answer; they count as "
                "without one"
            ]
        return {**found, "unfinished": np.array([not output.finished for output in outputs], np.float64)}

    def metrics(
        self, statistics: Mapping[str, npt.NDArray[Any]], weights: npt.NDArray[Any]
    ) -> dict[str, npt.NDArray[Any]]:
        return dict(text_metrics(statistics, weights))

    def baselines(self, requests: Sequence[Request], metric: str) -> dict[str, float]:
        found = self._scored([request.shown for request in requests], requests, [metric])
        return {"copy": float(text_metrics(found, np.ones((1, len(requests))))[metric][0])}

    def shown(self, output: Output) -> str:
        return self._process(output.text)

    def _scored(
        self, texts: Sequence[str], requests: Sequence[Request], metrics: Sequence[str]
    ) -> dict[str, npt.NDArray[Any]]:
        references = [request.reference for request in requests]
        return dict(text_statistics([self._process(text) for text in texts], references, metrics))


PRODUCT = Text

"""Scores of texts: published examples, the libraries' own numbers, and replicates that are scores of the resample."""

from __future__ import annotations

import sys
from typing import get_args

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from infra.errors import StageError
from tasks.generation.text.post_process import PostProcess, Regex, Step, cut_before
from tasks.metrics.written_text import TextMetric, require_packages, text_metrics, text_statistics

METRICS = get_args(TextMetric)
OUTPUTS = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him.", "", "Über alles"]
REFERENCES = ["The dog bit the man.", "It was not unexpected.", "The man bit him first.", "Something.", "über Alles!"]


def point(outputs: list[str], references: list[str]) -> dict[str, float]:
    found = text_metrics(text_statistics(outputs, references, METRICS), np.ones((1, len(outputs))))
    return {name: float(values[0]) for name, values in found.items()}


def test_published_examples() -> None:
    """ROUGE: the package's page, and Lin (2004), section 3. BLEU: Papineni et al. (2002), example 2."""
    fox = point(["The quick brown dog jumps on the log."], ["The quick brown fox jumps over the lazy dog"])
    assert (fox["rouge1"], fox["rougeL"]) == (pytest.approx(12 / 17), pytest.approx(10 / 17))
    lin = [point([said], ["police killed the gunman"])["rougeL"] for said in ("police kill the gunman", "the gunman kill police")]  # fmt: skip
    assert lin == [pytest.approx(3 / 4), pytest.approx(2 / 4)]
    counts = text_statistics(["the the the the the the the"], ["the cat is on the mat"], ["bleu"])["bleu"][0].tolist()
    assert counts[:6] == [7, 6, 2, 0, 0, 0] and counts[6] == 7, "modified unigram precision is 2 / 7"


def test_points_are_the_libraries_own() -> None:
    found = point(OUTPUTS, REFERENCES)
    assert found["bleu"] == pytest.approx(corpus_bleu(OUTPUTS, [REFERENCES]).score)
    assert found["chrf"] == pytest.approx(corpus_chrf(OUTPUTS, [REFERENCES]).score)
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for name in scorer.rouge_types:
        each = [scorer.score(ref, out)[name].fmeasure for out, ref in zip(OUTPUTS, REFERENCES, strict=True)]
        assert found[name] == pytest.approx(np.mean(each))
    assert found["exact_match"] == pytest.approx(2 / 5), "case and punctuation do not count"
    assert found["length_ratio"] == pytest.approx(sum(map(len, OUTPUTS)) / sum(map(len, REFERENCES)))


def test_a_replicate_is_the_score_of_the_resampled_corpus() -> None:
    """Not a mean of sentence scores: each resample is written out and given to sacrebleu whole."""
    weights = np.random.default_rng(0).multinomial(5, [0.2] * 5, 20).astype(float)
    found = text_metrics(text_statistics(OUTPUTS, REFERENCES, ["bleu", "chrf"]), weights)
    for r, row in enumerate(weights):
        places = np.repeat(np.arange(5), row.astype(int))
        said, wanted = [OUTPUTS[i] for i in places], [REFERENCES[i] for i in places]
        assert found["bleu"][r] == pytest.approx(corpus_bleu(said, [wanted]).score)
        assert found["chrf"][r] == pytest.approx(corpus_chrf(said, [wanted]).score)


def test_a_missing_package_is_named_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)  # importing it now fails as if it were not there
    require_packages(["exact_match", "rougeL"])
    with pytest.raises(
        StageError, match=r"sacrebleu is not installed.*`chrf`(.|\n)*forgeline\[text\].*exact_match, token_f1"
    ):
        require_packages(["exact_match", "chrf"])


@pytest.mark.parametrize(
    ("steps", "text", "expected"),
    [
        ([], " A\nb ", " A\nb "),
        (["strip"], " A\nb ", "A\nb"),
        (["first_line", "strip", "lowercase"], "\n  A b \nc", "a b"),
        ([Regex(regex=r"answer is (\d+)")], "The answer is 42. The answer is 7.", "42"),
        ([Regex(regex=r"answer is (\d+)")], "I do not know 42", ""),
        ([Regex(regex=r"(x)?y")], "y", ""),
        (["first_line"], " \n", ""),
    ],
)
def test_steps_of_post_processing(steps: list[Step], text: str, expected: str) -> None:
    assert PostProcess(steps)(text) == expected


def test_a_text_is_cut_before_the_first_of_several_strings() -> None:
    assert cut_before("one. two\nthree", ["\n", ". "]) == ("one", True)
    assert cut_before("one", ["\n"]) == ("one", False)
    assert cut_before("one", []) == ("one", False)

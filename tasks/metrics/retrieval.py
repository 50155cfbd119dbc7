"""Metrics of finding each query's own item among all items of a split, for many weightings at once.

A weighting says how much each query counts; the items that are searched stay all of them, so every metric is linear in
the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
BLOCK = 1024
SAME = 1e-6
"""Similarities that differ by less are one: how far two products of equal rows may lie apart in fp32."""


def ranks_of_own(queries: npt.NDArray[np.float32], items: npt.NDArray[np.float32]) -> Array:
    """Rank [N] of item i among all items for query i by inner product, 1 the best. queries, items [N, H].

    Items as similar as the own one count half, which is the mean of what drawing lots would give: embeddings that are
    all the same find nothing.
    """
    return _ranks(len(queries), lambda start, stop: queries[start:stop] @ items.T)


def tfidf_ranks(
    known: Sequence[npt.NDArray[np.int64]],
    queries: Sequence[npt.NDArray[np.int64]],
    items: Sequence[npt.NDArray[np.int64]],
) -> Array:
    """`ranks_of_own` by the cosine of counts of token ids, weighted by scikit-learn's idf of the `known` rows."""
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import TfidfTransformer

    size = 1 + max(int(row.max()) for rows in (known, queries, items) for row in rows)

    def counts(rows: Sequence[npt.NDArray[np.int64]]) -> csr_matrix:
        ends = np.r_[0, np.cumsum([len(row) for row in rows])]
        found = csr_matrix((np.ones(ends[-1]), np.concatenate(rows), ends), shape=(len(rows), size))
        found.sum_duplicates()  # a token counts as in a row once, however often it stands there
        return found

    weigh = TfidfTransformer().fit(counts(known))
    asked, found = weigh.transform(counts(queries)), weigh.transform(counts(items))
    return _ranks(len(queries), lambda start, stop: (asked[start:stop] @ found.T).toarray())


def retrieval_metrics(ranks: Array, weights: Array) -> dict[str, Array]:
    """recall@1, recall@10 and mean reciprocal rank, [R] each. ranks [N], weights [R, N] >= 0."""
    total = weights.sum(1)
    return {
        "mrr": (weights @ (1.0 / ranks)) / total,
        "recall@1": (weights @ (ranks <= 1.0)) / total,
        "recall@10": (weights @ (ranks <= 10.0)) / total,
    }


def _ranks(count: int, similarities: Callable[[int, int], npt.NDArray[np.floating]]) -> Array:
    ranks = np.empty(count)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        table = similarities(start, stop)
        own = table[np.arange(stop - start), np.arange(start, stop)][:, None]
        above = (table > own + SAME).sum(1)
        beside = (np.abs(table - own) <= SAME).sum(1) - 1
        ranks[start:stop] = 1.0 + above + 0.5 * beside
    return ranks

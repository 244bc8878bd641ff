"""Re-ranking is that of the paper's equations, written out, and leaves what it is given alone."""

import numpy as np
import pytest
import torch

from gaitlib.evaluate.reranking import DISTANCE_WEIGHT, K1, K2, rerank


def by_equations(between, probes):
    """The same with sets and dense matrices, for every pair of items."""
    items = range(len(between))
    share = [[between[i][j] / max(between[i]) for j in items] for i in items]
    order = [sorted(items, key=lambda j: share[i][j]) for i in items]

    def reciprocal(i, k):
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    first = np.zeros((len(between), len(between)))
    for i in items:
        own = reciprocal(i, K1)
        wide = set(own)
        for j in own:
            others = reciprocal(j, K1 // 2)
            if len(others & own) > 2 / 3 * len(others):
                wide |= others
        for j in wide:
            first[i, j] = np.exp(-share[i][j])
    first /= first.sum(1, keepdims=True)
    encoded = np.stack([first[order[i][:K2]].mean(0) for i in items])
    found = np.zeros((probes, len(between) - probes))
    for i in range(probes):
        for g in range(probes, len(between)):
            smaller = np.minimum(encoded[i], encoded[g]).sum()
            larger = np.maximum(encoded[i], encoded[g]).sum()
            jaccard = 1 - smaller / larger
            found[i, g - probes] = (1 - DISTANCE_WEIGHT) * jaccard + DISTANCE_WEIGHT * share[i][g]
    return found


def test_distances_are_those_of_the_equations():
    people = torch.randn(8, 6).repeat_interleave(6, 0)
    features = 0.7 * people[torch.randperm(48)] + torch.randn(48, 6)
    between = torch.cdist(features, features)
    given = between.clone()
    found = rerank(between, 20)
    assert torch.equal(between, given)
    np.testing.assert_allclose(found, by_equations(between.tolist(), 20), atol=1e-6)
    assert (found.argmin(1) != between[:20, 20:].argmin(1)).any()


@pytest.mark.parametrize("count", [2, 5])
def test_fewer_items_than_neighbours_and_equal_items_have_finite_distances(count):
    alike = torch.zeros(count, count)
    assert rerank(alike, 1).isfinite().all() and rerank(alike, 1).shape == (1, count - 1)

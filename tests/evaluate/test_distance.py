import itertools

import pandas as pd
import pytest
import torch
from protocols import evaluate_indoor

from gaitlib.evaluate import distance, protocol


def test_features_that_nearly_coincide_are_as_far_apart_as_float64_says():
    probe = 10 + torch.randn(8, 12, 3)
    for shift in (0.0, 1e-6, 1e-4, 1e-2, 1.0):
        gallery = probe + shift * torch.randn_like(probe)
        found = distance(probe, gallery)
        apart = probe.double()[:, None] - gallery.double()[None]
        expected = apart.norm(dim=2).mean(-1).float()
        torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)


def test_a_collapsed_network_puts_everything_at_distance_zero():
    features = torch.full((9, 5, 2), 3.3)
    assert distance(features, features, chunk=4).eq(0).all()


@pytest.mark.parametrize("cross_view_gallery", [False, True])
def test_ranking_few_distances_at_a_time_changes_nothing(monkeypatch, cross_view_gallery):
    types = ("nm-01", "nm-02", "nm-05", "bg-01", "bg-02", "cl-01", "cl-02")
    rows = itertools.product(("001", "002", "003"), types, ("000", "018"))
    table = pd.DataFrame(rows, columns=["subject", "type", "view"])
    features = torch.randn(len(table), 4, 2)
    whole = evaluate_indoor(features, table, cross_view_gallery=cross_view_gallery)
    monkeypatch.setattr(protocol, "MAX_DISTANCES", 30)
    monkeypatch.setattr(protocol, "FEATURES_PER_PIECE", 5)
    parts = evaluate_indoor(features, table, cross_view_gallery=cross_view_gallery)
    assert parts.hits.equals(whole.hits) and parts.rank1 == whole.rank1

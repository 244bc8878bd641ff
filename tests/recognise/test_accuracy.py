"""Counts of right names and of strangers that get one, worked by hand on five walks."""

import pandas as pd
import pytest
import torch
from test_gallery import at

from workbook.recognise import accuracy
from workbook.recognise.gallery import new_gallery


@pytest.fixture
def tried():
    gallery = new_gallery("n").enroll(["a", "b"], at(0, 10))
    gallery = gallery.with_threshold(at(14, 18, subjects="xy"), 0.0)  # just below 4
    known = at(1, 3, 4.5, 6, 14.5, subjects="aabbb")
    strangers = at(12, 17, 30, 40, subjects="wxyz")
    return accuracy.trials(gallery, known), accuracy.trials(gallery, strangers)


def test_a_walk_is_named_right_wrong_or_not_at_all(tried):
    known, strangers = tried
    assert known["distance"].tolist() == [1, 3, 4.5, 4, 4.5]
    assert known["rank"].tolist() == [1, 1, 2, 1, 1]
    assert known["named"].tolist() == [True, True, False, False, False]
    assert strangers["rank"].isna().all() and strangers["named"].tolist() == [True] + 3 * [False]
    shares = accuracy.rates(known, strangers).loc["NM"]
    assert shares.to_dict() == pytest.approx(
        {"rank1": 80, "named_right": 40, "named_wrong": 0, "unknown": 60, "false_accepts": 25}
    )


def test_curves_count_at_every_threshold(tried):
    curve = accuracy.open_set_curve(*tried).set_index("false_accepts")["identified"]
    # strangers are at 2, 7, 20, 30; right names at 1, 3, 4, 4.5
    assert curve.to_dict() == {25: 20, 50: 80, 75: 80, 100: 80}
    assert accuracy.rank_curve(tried[0]).to_numpy().tolist() == [[1, 80], [2, 100]]


def test_principal_components_keep_the_largest_variance():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randn(50, 2, generator=generator) * torch.tensor([5.0, 1.0])
    turned = plane @ torch.linalg.qr(torch.randn(6, 6, generator=generator))[0][:2]
    points, share = accuracy.principal_components(turned.reshape(50, 2, 3) + 7)
    assert share == pytest.approx(1)
    apart = torch.cdist(plane, plane)
    found = torch.cdist(*[torch.from_numpy(points)] * 2)
    torch.testing.assert_close(found, apart, atol=1e-3, rtol=0)
    assert pd.Series(points.std(0)).is_monotonic_decreasing

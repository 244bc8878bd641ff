import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from protocols import INDOOR, evaluate_indoor
from test_protocols import CASIA_B_TYPES

from gaitlib.evaluate import probe_view_means, protocol

GALLERY, PROBES = INDOOR.gallery, INDOOR.probes
VIEWS = ("000", "018", "036")


def tree(subjects=("075", "076", "077"), types=CASIA_B_TYPES, views=VIEWS):
    rows = itertools.product(subjects, types, views)
    return pd.DataFrame(rows, columns=["subject", "type", "view"])


def random_features(table, noise=3.0, seed=0):
    """Features that hold the subject, weakly: some probes hit and some miss."""
    generator = torch.Generator().manual_seed(seed)
    subject = torch.as_tensor(table["subject"].astype(int).to_numpy() % 3)
    centres = torch.randn(3, 6, 2, generator=generator)
    return centres[subject] + noise * torch.randn(len(table), 6, 2, generator=generator)


def clips(*rows):
    table = pd.DataFrame([row[:3] for row in rows], columns=["subject", "type", "view"])
    return torch.tensor([[[float(row[3])]] for row in rows]), table


def test_four_clips_by_hand():
    # On a line: at view 018 the nearest gallery clip of the probe (at 0.0) is 076's, at view 036
    # its own; at its own view 000 it has its own again, which must not count.
    features, table = clips(
        ("075", "nm-05", "000", 0.0),
        ("075", "nm-01", "000", 0.1),
        ("076", "nm-02", "018", 0.2),
        ("075", "nm-01", "036", 0.5),
        ("076", "nm-01", "036", 0.9),
    )
    evaluation = evaluate_indoor(features, table, views=VIEWS)
    assert evaluation.rank1_by_view["NM"].loc["000"].tolist() == [100, 0, 100]
    assert evaluation.rank1["NM"] == 50  # of 018 and 036
    assert np.isnan(evaluation.rank1["CL"])
    assert evaluation.hits.drop(columns=list(VIEWS)).to_numpy().tolist() == [
        ["NM", "075", "nm-05", "000"]
    ]


def test_a_missing_view_is_nan_reported_and_left_out_of_the_mean(caplog):
    table = tree()
    gone = ((table["view"] == "018") & table["type"].isin(GALLERY)) | (
        (table["view"] == "036") & (table["type"].isin(PROBES["BG"]))
    )
    table = table[~gone]
    evaluation = evaluate_indoor(random_features(table), table, views=VIEWS)
    matrix = evaluation.rank1_by_view["BG"]
    assert matrix["018"].isna().all() and matrix.loc["036"].isna().all()
    row_000, row_018 = matrix.loc["000", "036"], matrix.loc["018", ["000", "036"]].mean()
    assert evaluation.rank1["BG"] == pytest.approx((row_000 + row_018) / 2)
    assert evaluation.problems == (
        "no gallery sequence at view 018",
        "BG: no probe sequence at view 036",
    )
    assert "no gallery sequence at view 018" in caplog.text


def test_a_subject_that_lacks_one_gallery_view_is_named_with_it():
    table = tree()
    gone = (table["subject"] == "076") & (table["view"] == "018") & table["type"].isin(GALLERY)
    table = table[~gone]
    code = torch.tensor(table["subject"].astype(float).to_numpy())[:, None, None]
    counted = evaluate_indoor(code, table, views=VIEWS)
    removed = evaluate_indoor(code, table, views=VIEWS, remove_no_gallery=True)
    assert counted.rank1_by_view["NM"]["018"].tolist() == pytest.approx([200 / 3] * 3)
    assert removed.rank1_by_view["NM"]["018"].tolist() == [100, 100, 100]
    assert [p.split(";")[0] for p in counted.problems] == ["no gallery sequence of 076 at 018"]


def test_a_cross_view_probe_whose_gallery_is_all_at_its_own_view_is_a_miss_unless_removed():
    features, table = clips(
        ("075", "nm-01", "000", 0.0),  # its only match is at view 000 too
        ("075", "nm-02", "000", 0.1),
        ("076", "nm-01", "018", 2.0),
        ("076", "bg-02", "000", 3.0),
    )
    # 076's probe ranks its own clip (1.0 away) before 075's (1.9 away).
    cross_view = {"cross_view_gallery": True, "views": VIEWS}
    evaluation = evaluate_indoor(features, table, **cross_view)
    assert evaluation.hits["rank1"].tolist() == [0, 1]
    assert (evaluation.rank1["NM"], evaluation.scores["mAP"]["NM"]) == (50, 100)
    problem = "1 probes of 075 have no gallery sequence of another view: "
    assert any(p.startswith(f"{problem}each counts as a miss") for p in evaluation.problems)
    removed = evaluate_indoor(features, table, **cross_view, remove_no_gallery=True)
    assert removed.hits["rank1"].isna().tolist() == [True, False]
    assert removed.rank1["NM"] == removed.scores["mAP"]["NM"] == 100
    assert any(p.startswith(f"{problem}they are left out") for p in removed.problems)


def test_the_mean_of_probe_view_means_is_the_rank1():
    table = tree()
    evaluation = evaluate_indoor(random_features(table), table, views=VIEWS)
    curves = probe_view_means(evaluation.rank1_by_view)
    means = curves.groupby("condition")["rank1"].mean()
    assert means.to_dict() == pytest.approx(evaluation.rank1)
    assert len(curves) == 9


def test_wrong_input_is_refused():
    table = tree(views=("000",))
    features = random_features(table)
    with pytest.raises(ValueError, match="29 features for a table of 30"):
        evaluate_indoor(features[1:], table)
    with pytest.raises(ValueError, match="1 of 30 features are not finite"):
        evaluate_indoor(features.index_fill(0, torch.tensor([3]), torch.nan), table)
    with pytest.raises(ValueError, match="'999'"):
        evaluate_indoor(features, table.assign(view="999"))
    with pytest.raises(ValueError, match="no gallery: none of the 30 test sequences"):
        evaluate_indoor(features, table.assign(type="nm-05"))
    with pytest.raises(ValueError, match="no probe: .* they are of nm-01"):
        evaluate_indoor(features, table.assign(type="nm-01"))


@pytest.mark.parametrize("cross_view_gallery", [False, True])
def test_ranking_few_distances_at_a_time_changes_nothing(monkeypatch, cross_view_gallery):
    table = tree(views=("000", "018"))
    features = random_features(table)
    whole = evaluate_indoor(features, table, cross_view_gallery=cross_view_gallery)
    monkeypatch.setattr(protocol, "MAX_DISTANCES", 30)
    monkeypatch.setattr(protocol, "FEATURES_PER_PIECE", 5)
    parts = evaluate_indoor(features, table, cross_view_gallery=cross_view_gallery)
    assert parts.hits.equals(whole.hits) and parts.rank1 == whole.rank1

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import torch
from protocols import evaluate_indoor

from gaitlib.evaluate import (
    Averaging,
    bootstrap_drop,
    examples,
    from_results,
    nearest,
    read_hits,
    to_results,
    worst_pairs,
    write_hits,
)
from gaitlib.evaluate.compare import _weighted_rank1
from gaitlib.evaluate.evaluation import mean_rank1, rank1_by_view
from gaitlib.evaluate.protocols import PROTOCOLS

CASIA_B = PROTOCOLS["casia-b"]
VIEWS = ("000", "018", "036")
TYPES = ("nm-01", "nm-05", "nm-06", "bg-01", "cl-02")


@pytest.fixture
def table():
    rows = itertools.product([f"{s:03d}" for s in range(75, 83)], TYPES, VIEWS)
    return pd.DataFrame(rows, columns=["subject", "type", "view"])


def noisy(table, noise, seed=0):
    generator = torch.Generator().manual_seed(seed)
    code = torch.nn.functional.one_hot(torch.tensor(table["subject"].astype(int).to_numpy()) - 75)
    features = code.float()[:, :, None]
    return features + noise * torch.randn(features.shape, generator=generator)


@pytest.fixture
def two(table):
    a = evaluate_indoor(noisy(table, 0.3), table, views=VIEWS)
    b = evaluate_indoor(noisy(table, 0.8, seed=1), table, views=VIEWS)
    return a, b


def test_the_drop_is_the_difference_of_the_rank1s(two):
    a, b = two
    rows = bootstrap_drop(a.hits, b.hits.sample(frac=1, random_state=0), n=200, seed=1)
    rows = rows.set_index("condition")
    for condition in ("NM", "BG", "CL"):
        row = rows.loc[condition]
        assert row["rank1_a"] == pytest.approx(a.rank1[condition])
        assert row["difference"] == pytest.approx(b.rank1[condition] - a.rank1[condition])
        assert row["low"] < row["difference"] < row["high"]
    pd.testing.assert_frame_equal(
        rows, bootstrap_drop(a.hits, b.hits, 200, seed=1).set_index("condition")
    )


def test_a_draw_of_subjects_equals_the_evaluation_of_those_subjects(two):
    # Weighting subjects (2, 1, 0, ...) is the same as listing the probes of the first one twice.
    hits = two[1].hits.query("condition == 'BG'")
    weights = np.array([[2, 1, 0, 0, 0, 0, 0, 3]])
    subjects = sorted(hits["subject"].unique())
    drawn = pd.concat(
        [
            hits[hits["subject"] == s]
            for s, w in zip(subjects, weights[0], strict=True)
            for _ in range(w)
        ]
    )
    expected = mean_rank1(rank1_by_view(drawn, VIEWS))
    assert _weighted_rank1(hits, weights, Averaging()) == pytest.approx([expected])


def test_more_subjects_give_a_narrower_interval(two):
    a, b = (e.hits.query("condition == 'NM'") for e in two)
    few = bootstrap_drop(a, b, 500)
    many = [pd.concat([t.assign(subject=t["subject"] + str(i)) for i in range(9)]) for t in (a, b)]
    many = bootstrap_drop(*many, 500)
    ratio = (few["high"] - few["low"]) / (many["high"] - many["low"])
    assert ratio.item() == pytest.approx(3, rel=0.25)


def test_one_subject_has_no_interval_and_other_probes_are_refused(two):
    hits = two[0].hits
    alone = hits[hits["subject"] == "075"]
    assert bootstrap_drop(alone, alone)[["low", "high"]].isna().all(axis=None)
    with pytest.raises(ValueError, match="84 of 96 probes are in one table only"):
        bootstrap_drop(alone, hits)


def test_missing_hits_are_left_out_of_the_drop(two):
    a, b = two[0].hits.copy(), two[1].hits.copy()
    for hits in (a, b):
        hits["018"] = np.nan
    matrix = two[0].rank1_by_view["NM"].assign(**{"018": np.nan})
    expected = np.mean(
        [
            matrix.loc["000", "036"],
            matrix.loc["036", "000"],
            matrix.loc["018", ["000", "036"]].mean(),
        ]
    )
    assert bootstrap_drop(a, b, 20)["rank1_a"][0] == pytest.approx(expected)


def test_cross_view_hits_can_be_compared_too(table):
    table = table.replace({"type": {"nm-05": "nm-02", "nm-06": "bg-02"}})
    a, b = (
        evaluate_indoor(noisy(table, s), table, cross_view_gallery=True, views=VIEWS)
        for s in (0.3, 0.9)
    )
    row = bootstrap_drop(a.hits, b.hits, 20).iloc[0]
    assert row["difference"] == pytest.approx(b.rank1["NM"] - a.rank1["NM"])


def test_the_worst_pairs_have_their_loss_probes_and_the_interval_of_chance(two):
    a, b = two
    worst = worst_pairs(a.hits, b.hits, 5, n=400)
    maps = {c: b.rank1_by_view[c] - a.rank1_by_view[c] for c in b.rank1_by_view}
    losses = sorted(
        table.loc[probe, gallery]
        for table in maps.values()
        for probe, gallery in itertools.permutations(VIEWS, 2)
    )
    assert worst["difference"].tolist() == pytest.approx(losses[:5])
    for row in worst.to_dict("records"):
        assert row["difference"] == pytest.approx(
            maps[row["condition"]].loc[row["probe"], row["gallery"]]
        )
        assert row["probes"] == 8 * (2 if row["condition"] == "NM" else 1)  # subjects x types
        assert row["low"] <= 0 <= row["high"]
    lowest, highest = worst.attrs["worst_by_chance"]
    assert lowest <= highest <= 0 and lowest <= worst["low"].min()


def test_chance_alone_swaps_the_models_of_whole_subjects():
    rows = [("NM", s, t, "000", 1, 1) for s in ("1", "2") for t in ("nm-05", "nm-06")]
    a = pd.DataFrame(rows, columns=["condition", "subject", "type", "view", "000", "018"])
    b = a.assign(**{"018": [0, 0, 1, 1]})  # model b loses both probes of subject 1
    (row,) = worst_pairs(a, b, n=200).to_dict("records")
    assert (row["difference"], row["probes"], row["low"], row["high"]) == (-50, 4, -50, 50)
    same = worst_pairs(a, a, n=20)
    assert same[["low", "high"]].to_numpy().tolist() == [[0, 0]]
    assert worst_pairs(a.drop(columns="018"), a.drop(columns="018")).empty


def test_nearest_never_takes_the_probes_own_view(table):
    features = noisy(table, 0.8)
    pairs = nearest(features, table, "NM", "euc", CASIA_B)
    assert len(pairs) == 48 and (pairs["probe_view"] != pairs["gallery_view"]).all()
    for pair in pairs.itertuples():
        others = table[(table["type"] == "nm-01") & (table["view"] != pair.probe_view)].index
        distances = (features[others] - features[pair.probe]).norm(dim=1).flatten()
        assert pair.gallery == others[distances.argmin().item()]
        assert pair.distance == pytest.approx(distances.min().item())
        assert pair.hit == (table["subject"][pair.gallery] == table["subject"][pair.probe])
    with pytest.raises(ValueError, match="'XX'"):
        nearest(features, table, "XX", "euc", CASIA_B)


def test_examples_repeat_for_a_seed_and_hold_both_kinds(table):
    pairs = nearest(noisy(table, 0.8), table, "NM", "euc", CASIA_B)
    drawn = examples(pairs, hits=3, misses=2, seed=4)
    assert drawn["hit"].tolist() == [True] * 3 + [False] * 2
    pd.testing.assert_frame_equal(drawn, examples(pairs, hits=3, misses=2, seed=4))


def test_results_are_json_and_come_back(table):
    features, views = noisy(table, 0.8), (*VIEWS, "054")
    evaluation = evaluate_indoor(features, table, views=views)
    results = json.loads(json.dumps(to_results(evaluation), allow_nan=False))
    assert results["views"] == list(views)
    assert results["rank1_by_view"]["NM"][3] == [None] * 4
    back = from_results(results)
    for condition, matrix in evaluation.rank1_by_view.items():
        pd.testing.assert_frame_equal(back[condition], matrix.round(2))


def test_cross_view_results_have_one_cell_per_condition(table):
    table = table.replace({"type": {"nm-05": "nm-02"}})
    results = to_results(evaluate_indoor(noisy(table, 0.8), table, cross_view_gallery=True))
    assert results["cross_view_gallery"] and set(results["mAP"]) == {"NM", "BG", "CL"}
    assert "rank1_by_view" not in results
    cells = {condition: cell.loc["all", "all"] for condition, cell in from_results(results).items()}
    assert list(cells) == ["NM", "BG", "CL"]
    assert cells == pytest.approx(
        {c: v or np.nan for c, v in results["rank1"].items()}, nan_ok=True
    )


def test_hits_come_back_from_the_file(two, tmp_path):
    hits = two[0].hits
    write_hits(hits, tmp_path / "hits.csv")
    back = read_hits(tmp_path / "hits.csv")
    assert back["subject"][0] == "075" and list(back.columns) == list(hits.columns)
    rows = bootstrap_drop(hits, back, 10)
    assert (rows["difference"] == 0).all()

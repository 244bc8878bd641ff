"""The tables of a finished study: means over seeds, frontiers, gaps, and the recommendation."""

import math

import numpy as np
import pandas as pd
import pytest

from workbook.report.frontier import (
    cuts,
    default_reference,
    gaps,
    mean_gaps,
    overview,
    paired_differences,
    pareto,
    summarise,
)
from workbook.report.method_names import in_order
from workbook.report.recommendation import recommend

KEY = "geta_optimizer_cfg.target_group_sparsity"
# method, sparsity, seed, rank-1 in NM, BG and CL, MMAC, kB, relative BOPs
NETWORKS = [
    ("uniform", 0.5, 0, (79, 79, 79), 4, 120, 40),
    ("uniform", 0.5, 1, (77, 77, 77), 4, 120, 40),
    ("baseline", math.nan, 0, (82, 80, 78), 16, 500, 100),
    ("baseline", math.nan, 1, (84, 82, 80), 16, 500, 100),
    ("hesso", 0.5, 0, (80, 78, 76), 4, 130, 40),
    ("hesso", 0.5, 1, (80, 79, 78), 4, 130, 40),
    ("hesso", 0.8, 0, (76, 74, 72), 1, 60, 10),
    ("hesso", 0.8, 1, (75, 73, 71), 1, 60, 10),
    ("geta", 0.5, 0, (81, 79, 77), 8, 30, 2),
    ("geta", 0.5, 1, (82, 80, 78), 8, 30, 2),
    ("geta", 0.8, 0, (74, 70, 69), 0.5, 20, 1),
    ("geta", 0.8, 1, (74, 70, 69), 0.5, 20, 1),
]


def table(networks=NETWORKS, key=KEY):
    rows = []
    for method, setting, seed, rank1, macs, file, bops in networks:
        rank1 = dict(zip(("rank1_NM", "rank1_BG", "rank1_CL"), rank1, strict=True))
        rows.append(
            {"point": f"{method}-{setting}-{seed}", "method": method, "seed": seed, key: setting}
            | rank1
            | {"params": 1000 * file, "macs_per_frame": 1e6 * macs, "relative_bops": bops}
            | {"weight_bits": 32.0, "activation_bits": 32.0, "file_bytes": 1000 * file}
            | {"group_sparsity": setting, "total_iterations": 20}
            | {"ms_1_clip": 2.0 * macs, "ms_16_clips": 20.0 * macs, "seconds": 9.0}
        )
    return pd.DataFrame(rows)


def row(frame, method, setting=None):
    chosen = frame[(frame["method"] == method) & (frame[KEY].isna() if setting is None else True)]
    (found,) = chosen[chosen[KEY].isna() | (chosen[KEY] == setting)].to_dict("records")
    return found


def gaps_of(networks, reference="hesso"):
    return gaps(table(networks), "macs_per_frame", reference)


@pytest.mark.parametrize(
    ("methods", "reference"),
    [("baseline hesso budget", "budget"), ("baseline geta hesso", "hesso"), ("mine geta", "geta")],
)
def test_others_are_compared_with_the_budget_or_what_comes_nearest(methods, reference):
    assert default_reference(pd.DataFrame({"method": methods.split()})) == reference


def test_a_setting_has_the_mean_and_spread_of_its_seeds_and_its_drop_compares_equal_seeds():
    found = row(summarise(table()), "hesso", 0.5)
    assert (found["rank1"], found["rank1_min"], found["rank1_max"]) == (78.5, 78, 79)
    assert (found["rank1_CL"], found["rank1_CL_min"], found["rank1_CL_max"]) == (77, 76, 78)
    assert (found["drop"], found["drop_min"], found["drop_max"]) == (2.5, 2, 3)  # 80-78, 82-79
    assert (found["seeds"], found["macs_per_frame"], found["file_bytes"]) == (2, 4e6, 130_000)
    assert (found["setting"], found["values"]) == ("target_group_sparsity 0.5", "0.5")


def test_the_table_to_read_has_costs_in_its_units_and_leaves_out_what_was_not_measured():
    summary = summarise(table().assign(ms_1_clip=np.nan))
    assert pareto(summary, "ms_1_clip").empty
    found = overview(summary).loc[("HESSO (five scores)", "0.5")]
    assert found.to_dict() == {
        **{"seeds": 2, "NM": 80, "BG": 78.5, "CL": 77, "rank1": 78.5, "lowest": 78, "highest": 79},
        **{"drop": 2.5, "MMAC per frame": 4, "parameters": 130_000, "BOPs, % of dense": 40},
        "file, kB": 130,
    }


def test_methods_stand_in_their_order_and_an_unknown_one_keeps_its_name():
    summary = summarise(table([*NETWORKS, ("mine", 0.5, 0, (70, 70, 70), 4, 100, 40)]))
    assert list(summary["method"].unique()) == ["baseline", "geta", "hesso", "uniform", "mine"]
    assert row(summary, "mine", 0.5)["name"] == "mine"
    assert row(summary, "baseline")["name"] == "dense" and row(summary, "baseline")["setting"] == ""
    assert in_order(["mine", "geta", "mine", "baseline"]) == ["baseline", "geta", "mine"]


def test_what_lacks_a_condition_or_a_baseline_has_no_mean_or_drop():
    points = table()
    points.loc[points["method"] == "geta", "rank1_CL"] = np.nan
    assert math.isnan(row(summarise(points), "geta", 0.5)["rank1"])
    assert row(summarise(points), "geta", 0.5)["rank1_NM"] == 81.5
    assert summarise(table(NETWORKS[4:]))["drop"].isna().all()  # no baseline
    untested = table().drop(columns=["rank1_CL", "ms_1_clip"])
    found = row(summarise(untested), "geta", 0.5)
    assert found["rank1"] == 80.5 and math.isnan(found["ms_1_clip"])


def test_a_baseline_that_reads_the_grid_is_that_of_the_same_setting():
    key = "trainer_cfg.total_iter"
    points = table(
        [
            ("baseline", 100, 0, (80, 80, 80), 16, 500, 100),
            ("baseline", 200, 0, (90, 90, 90), 16, 500, 100),
            ("hesso", 100, 0, (79, 79, 79), 4, 130, 40),
            ("hesso", 200, 0, (85, 85, 85), 4, 130, 40),
        ],
        key,
    )
    summary = summarise(points).set_index(["method", key])
    assert summary.loc[("hesso", 100), "drop"] == 1 and summary.loc[("hesso", 200), "drop"] == 5
    assert summary.loc[("hesso", 200), "setting"] == "total_iter 200"


def test_empty_tables_and_repeated_points_are_refused():
    with pytest.raises(ValueError, match="no finished point"):
        summarise(table()[:0])
    with pytest.raises(ValueError, match=r"uniform-0.5-0.*holds each network once"):
        summarise(table([*NETWORKS, NETWORKS[0]]))


def test_a_frontier_is_what_a_loop_over_all_pairs_keeps():
    rng = np.random.default_rng(0)
    columns = {"method": rng.choice(["a", "b"], 40), "cost": rng.integers(1, 9, 40)}
    summary = pd.DataFrame({**columns, "rank1": rng.integers(60, 70, 40)}).drop_duplicates()
    kept = []
    for at, one in summary.iterrows():
        others = summary[summary["method"] == one["method"]].drop(at)
        if not ((others["cost"] <= one["cost"]) & (others["rank1"] >= one["rank1"])).any():
            kept.append(at)
    front = pareto(summary, "cost")
    assert sorted(front.index) == kept and 2 < len(kept) < 20
    for _, line in front.groupby("method"):
        assert line["cost"].is_monotonic_increasing and line["rank1"].is_monotonic_increasing


def test_a_gap_is_to_the_line_between_the_reference_and_the_dense_network_of_the_seed():
    found = gaps_of(NETWORKS)
    # 8 MMAC is half way in the logarithm between 4 and 16: (78 + 80) / 2 and (79 + 82) / 2
    geta = found[(found["method"] == "geta") & (found["macs_per_frame"] == 8e6)]
    assert geta["reference"].tolist() == pytest.approx([79, 80.5])
    assert geta["gap"].tolist() == pytest.approx([0, -0.5])
    uniform = found.loc[found["method"] == "uniform", "gap"]
    assert uniform.tolist() == pytest.approx([1, -2])  # at a setting of the reference
    assert set(found["method"]) == {"geta", "uniform"}


def test_nothing_is_extrapolated():
    geta = gaps_of(NETWORKS).query("method == 'geta' and rank1 < 75")
    assert geta["gap"].isna().all()
    assert geta["note"].tolist() == ["50 % cheaper than any HESSO (five scores)"] * 2
    close = [(*n[:4], 0.96 if n[4] == 0.5 else n[4], *n[5:]) for n in NETWORKS]
    near = gaps_of(close).query("method == 'geta' and rank1 < 75")
    assert near["reference"].tolist() == [74, 73]  # what the cheapest has
    no_dense = gaps_of([n for n in NETWORKS if n[0] != "baseline"])
    geta = no_dense.query("method == 'geta' and rank1 > 75")
    assert (
        geta["note"].tolist() == ["100 % more expensive than any HESSO (five scores) or dense"] * 2
    )


def test_the_dense_end_is_the_network_with_as_many_steps():
    longer = [("dense_longer", math.nan, s, (86, 86, 86), 16, 500, 100) for s in (0, 1)]
    found = gaps_of([*NETWORKS, *longer]).query("method == 'geta' and rank1 > 75")
    assert found["reference"].tolist() == pytest.approx([(78 + 86) / 2, (79 + 86) / 2])


def test_a_seed_without_the_reference_is_noted():
    found = gaps_of([n for n in NETWORKS if n[0] != "hesso" or n[2] == 0])
    assert set(found.loc[found["seed"] == 1, "note"]) == {"no HESSO (five scores) of this seed"}
    with pytest.raises(ValueError, match=r"no 'ptq'.*'hesso'"):
        gaps_of(NETWORKS, "ptq")
    assert mean_gaps(gaps_of([n for n in NETWORKS if n[0] == "hesso"])).empty


def test_differences_are_paired_by_seed_at_the_same_budget():
    key, rows = "geta_optimizer_cfg.target_macs", []
    for seed, (dense, ours, uniform) in enumerate([(80, 79, 76), (84, 82, 77), (82, 81, 75)]):
        rows.append(("baseline", math.nan, seed, (dense,) * 3, 16, 500, 100))
        rows.append(("budget", 0.25, seed, (ours, ours + 1, ours - 1), 4, 130, 25))
        rows.append(("budget", 0.5, seed, (90, 90, 90), 8, 130, 50))
        rows.append(("uniform", 0.25, seed, (uniform,) * 3, 4.1, 130, 25))
    rows.append(("hesso", 0.5, 1, (89, 89, 89), 8, 130, 50))
    points = table(rows, key)
    points.insert(points.columns.get_loc("params"), "budget", points[key])
    found = paired_differences(points, "budget").set_index(["method", "values"])
    assert found.index.tolist() == [
        *(("baseline", "0.25"), ("baseline", "0.5"), ("hesso", "0.5"), ("uniform", "0.25")),
    ]
    uniform = found.loc[("uniform", "0.25")]  # 3, 5 and 6 points: mean 14 / 3, variance 7 / 3
    assert (uniform["seeds"], uniform["budget"]) == (3, 0.25)
    assert uniform["difference"] == pytest.approx(14 / 3)
    assert uniform["standard_error"] == pytest.approx(math.sqrt(7 / 3 / 3))
    reach = 4.302653 * math.sqrt(7 / 9)  # two degrees of freedom
    assert (uniform["low"], uniform["high"]) == pytest.approx((14 / 3 - reach, 14 / 3 + reach))
    assert uniform["macs_per_frame"] == pytest.approx(4.1e6) and uniform["reference_macs"] == 4e6
    dense = found.loc[("baseline", "0.25")]
    assert (dense["difference"], dense["macs_per_frame"]) == pytest.approx((-4 / 3, 16e6))
    one = found.loc[("hesso", "0.5")]
    assert (one["seeds"], one["difference"]) == (1, 1) and math.isnan(one["low"])
    with pytest.raises(ValueError, match=r"no 'budget'.*'hesso'"):
        paired_differences(table(), "budget")


def test_mean_gaps_count_what_they_compare():
    found = mean_gaps(gaps_of(NETWORKS)).loc["GETA"].to_dict()
    assert found == pytest.approx(
        {"mean": -0.25, "lowest": -0.5, "highest": 0, "seed_lowest": -0.5, "seed_highest": 0}
        | {"compared": 2, "outside": 2, "seeds": 2}
    )


def test_cuts_are_means_over_seeds_in_the_order_of_the_network():
    points = table()
    layers = pd.DataFrame(
        [
            {"point": point, "method": method, "seed": seed, "layer": layer, "kept": kept + seed}
            | {"total": 8, "weight_bits": 4 + seed, "activation_bits": 8}
            for point, method, seed in points[["point", "method", "seed"]].itertuples(index=False)
            for layer, kept in (("layer1", 7), ("conv0", 3))
        ]
    )
    found = cuts(layers, points)
    assert found["layer"].tolist()[:2] == ["layer1", "conv0"]
    geta = found[(found["method"] == "geta") & (found["values"] == "0.8")]
    assert geta["share"].tolist() == [100 * 7.5 / 8, 100 * 3.5 / 8]
    assert geta["weight_bits"].tolist() == [4.5, 4.5]
    assert len(found) == 2 * len(summarise(points))


@pytest.mark.parametrize(
    ("limits", "method", "setting"),
    [
        ({}, "baseline", None),  # the most accurate of all
        ({"max_macs": 8e6}, "geta", 0.5),
        ({"max_macs": 7.9e6}, "hesso", 0.5),
        ({"max_macs": 7.9e6, "max_bytes": 120_000}, "uniform", 0.5),
        ({"max_bytes": 60_000, "max_latency_ms": 3}, "hesso", 0.8),
        ({"max_drop": 2}, "geta", 0.5),  # not the most accurate that loses so little
        ({"max_drop": 20}, "geta", 0.8),
        ({"max_drop": 2.5, "max_bytes": 500_000}, "baseline", None),
        ({"max_drop": 0, "max_macs": 0}, "baseline", None),
    ],
)
def test_the_best_that_meets_every_limit_is_recommended(limits, method, setting):
    found = recommend(summarise(table()), limits)
    assert found.row.to_dict() == pytest.approx(
        row(summarise(table()), method, setting), nan_ok=True
    )
    assert found.limits == {name: limit for name, limit in limits.items() if limit}


def test_of_equals_the_one_with_fewer_bops_is_recommended():
    rank1 = (78, 78, 78)
    rows = [(m, 0.5, 0, rank1, 4, 100, bops) for m, bops in (("uniform", 40), ("geta", 3))]
    assert recommend(summarise(table(rows)), {"max_macs": 5e6}).row["method"] == "geta"


def test_the_sentence_says_what_it_costs_and_against_what_it_was_chosen():
    sentence = recommend(summarise(table()), {"max_macs": 8e6}).sentence
    assert sentence == (
        "GETA (target_group_sparsity 0.5) is the most accurate of the 5 settings (of 6) within 8 "
        "MMAC per frame: rank-1 79.5 % (79.0 to 80.0 over 2 seeds), -1.5 points (-2.0 to -1.0) "
        "against the dense network, with 8 MMAC per frame, 30,000 parameters, 2 % of the dense "
        "network's BOPs and 30 kB; next comes HESSO (five scores) (target_group_sparsity 0.5) "
        "with 78.5 %."
    )
    close = recommend(summarise(table()), {"max_macs": 7e6}).sentence
    assert close.endswith(
        "next comes uniformly slim (target_group_sparsity 0.5) with 78.0 %, "
        "closer than the seeds are to each other."
    )


def test_the_sentence_mentions_a_single_seed_and_a_single_choice():
    points = table([n for n in NETWORKS if n[2] == 0 and n[0] in ("baseline", "geta")])
    sentence = recommend(summarise(points), {"max_latency_ms": 1.5}).sentence
    assert (
        "is the only one of 3 settings within 1.5 ms per clip: rank-1 71.0 % (one seed)" in sentence
    )
    assert "and 1 ms per clip; no other method" in sentence


def test_limits_that_nothing_meets_name_what_comes_nearest():
    summary = summarise(table())
    found = recommend(summary, {"max_macs": 4e5, "max_bytes": 30_000})
    assert found.row is None
    assert found.sentence == (
        "None of 6 settings is within 0.4 MMAC per frame and 30 kB: GETA "
        "(target_group_sparsity 0.8) comes nearest, with 0.5 MMAC per frame, 25 % over max_macs."
    )
    unmeasured = summarise(table().assign(ms_1_clip=np.nan))
    sentence = recommend(unmeasured, {"max_latency_ms": 5}).sentence
    assert sentence.endswith("within 5 ms per clip: ms_1_clip was not measured.")


@pytest.mark.parametrize("limit", [{"max_macs": -1}, {"max_drop": math.nan}])
def test_a_limit_that_is_none_is_refused(limit):
    ((name, value),) = limit.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        recommend(summarise(table()), limit)

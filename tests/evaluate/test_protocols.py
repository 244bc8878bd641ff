"""Every built-in protocol against a plain double loop over made-up features."""

import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from gaitlib.evaluate import (
    Averaging,
    bootstrap_drop,
    check_test_set,
    distance,
    evaluate_features,
    from_results,
    to_results,
)
from gaitlib.evaluate.protocols import PROTOCOLS, Protocol
from gaitlib.evaluate.reranking import rerank
from workbook.config.protocol_cfg import ProtocolCfg, protocol_of

SUBJECTS = ("001", "002", "003")
NORMAL = ("nm-01", "nm-02", "nm-03", "nm-04")
CASIA_B_TYPES = (*NORMAL, "nm-05", "nm-06", "bg-01", "bg-02", "cl-01", "cl-02")
SUSTECH_TYPES = ("00-nm", "01-nm", "01-bg", "02-cl", "02-cr", "03-ub", "03-uf", "04-oc", "04-nt")
CASIA_E_TYPES = [
    f"{height}-{scene}-{kind}-1"
    for height, scene, kind in itertools.product(
        "HL", ("scene1", "scene2", "scene3", "scene3_s"), ("nm", "bg", "cl")
    )
]
CCPG_TYPES = ("U0_D0", "U0_D0_BG", "U0_D3", "U1_D0", "U1_D1", "U2_D2", "U3_D3")
CAMERAS = ("camid0_videoid1", "camid2_videoid1", "camid5_videoid2", "camid5_videoid3")
LISTED = [f"{s}-{camera}-seq0" for s in SUBJECTS for camera in CAMERAS[:2]]


def is_in(*types):
    return lambda row: row.type in types


def has(text):
    return lambda row: text in row.type


def casia_e(kind):
    return lambda row: f"-{kind}-" in row.type and "scene1" not in row.type and row.view != "270"


def listed(row):
    return f"{row.subject}-{row.type}-{row.view}" in LISTED


def unlisted(row):
    return not listed(row)


#: protocol -> types, views, and per condition which sequences are probes and which are gallery.
VIEW_PAIRS = {
    "casia-b": (
        CASIA_B_TYPES,
        ("000", "018", "036"),
        {
            "NM": (is_in("nm-05", "nm-06"), is_in(*NORMAL)),
            "BG": (has("bg"), is_in(*NORMAL)),
            "CL": (has("cl"), is_in(*NORMAL)),
        },
    ),
    "oumvlp": (("00", "01"), ("000", "045", "270"), {"NM": (is_in("00"), is_in("01"))}),
    "casia-e": (
        CASIA_E_TYPES,
        ("000", "045", "270"),
        {
            kind.upper(): (
                casia_e(kind),
                lambda row: row.type[2:] == "scene1-nm-1" and row.view != "270",
            )
            for kind in ("nm", "bg", "cl")
        },
    ),
    "sustech1k": (
        SUSTECH_TYPES,
        ("000", "090-near"),
        {"NM": (is_in("01-nm"), is_in("00-nm"))}
        | {k.upper(): (has(k), is_in("00-nm")) for k in "bg cl cr ub uf oc nt".split()}
        | {"all": (lambda row: not row.type.startswith("00"), is_in("00-nm"))},
    ),
    "ccpg": (
        CCPG_TYPES,
        ("01_0", "01_1", "02_0"),
        {
            "CL": (is_in("U0_D0_BG", "U0_D0"), is_in("U1_D1", "U2_D2", "U3_D3")),
            "UP": (is_in("U3_D3"), is_in("U0_D3")),
            "DN": (is_in("U1_D0"), is_in("U1_D1")),
            "BG": (is_in("U0_D0_BG"), is_in("U0_D0")),
        },
    ),
}
#: protocol -> types, probes, gallery; whether a probe without match is a miss; what excludes.
WHOLE_GALLERY = {
    "gait3d": (CAMERAS, listed, unlisted, False),
    "ccgr-mini": (CAMERAS, unlisted, listed, False),
    "gallery_probe": (CAMERAS, listed, unlisted, True),
    "grew-labelled": (("01", "02", "03"), is_in("02"), is_in("01"), True),
}


def made_up(types, views, subjects=SUBJECTS, seed=0, noise=1.5):
    rows = itertools.product(subjects, types, views)
    table = pd.DataFrame(rows, columns=["subject", "type", "view"])
    generator = torch.Generator().manual_seed(seed)
    code = torch.tensor([float(s) if s.isdigit() else 0.0 for s in table["subject"]])
    features = code[:, None, None] + noise * torch.randn(len(table), 4, 2, generator=generator)
    return table, features


def ranking(between, table, i, gallery):
    """Return whether each gallery row, from near to far, shows the subject of row i."""
    order = sorted(gallery, key=lambda j: between[i, j].item())
    return [table["subject"][j] == table["subject"][i] for j in order]


@pytest.mark.parametrize("name", VIEW_PAIRS)
def test_view_pairs_agree_with_a_double_loop(name):
    types, views, conditions = VIEW_PAIRS[name]
    table, features = made_up(types, views)
    own_views = {"views": views} if name == "casia-b" else {}
    found = evaluate_features(features, table, replace(PROTOCOLS[name], **own_views))
    between, rows = distance(features, features), list(table.itertuples())
    places = [row.view.split("_")[0] if name == "ccpg" else row.view for row in rows]
    names = sorted(set(places) - ({"270"} if name == "casia-e" else set()))
    assert found.views == tuple(names) and tuple(found.rank1) == tuple(conditions)
    for condition, (is_probe, is_gallery) in conditions.items():
        expected = {k: pd.DataFrame(index=names, columns=names, dtype=float) for k in (1, 5)}
        for probe_view, gallery_view in itertools.product(names, names):
            gallery = [j for j, r in enumerate(rows) if is_gallery(r) and places[j] == gallery_view]
            ranked = [
                ranking(between, table, i, gallery)
                for i, r in enumerate(rows)
                if is_probe(r) and places[i] == probe_view
            ]
            for k in expected:
                hits = [any(match[:k]) for match in ranked]
                expected[k].loc[probe_view, gallery_view] = 100 * np.mean(hits)
        of_pairs = found.rank1_by_view[condition]
        assert np.allclose(of_pairs, expected[1]) and 0 < of_pairs.to_numpy().mean() < 100
        others = ~np.eye(len(names), dtype=bool)
        others = {k: cells.to_numpy()[others].mean() for k, cells in expected.items()}
        assert found.rank1[condition] == pytest.approx(others[1])
        if name == "sustech1k":
            assert found.scores["rank5"][condition] == pytest.approx(others[5])


def loop_over_probes(table, between, probes, gallery, miss, own_view):
    """Return rank-1, rank-5, mAP and mINP in %, probe by probe."""
    hits, precisions, penalties = [], [], []
    for i in probes:
        row = table.loc[i]
        left = [
            j
            for j in gallery
            if own_view or (table["subject"][j], table["view"][j]) != (row["subject"], row["view"])
        ]
        match = ranking(between, table, i, left)
        at = [rank for rank, same in enumerate(match, 1) if same]
        if at:
            precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(at)]))
            penalties.append(len(at) / at[-1])
        if at or miss:
            hits.append((any(match[:1]), any(match[:5])))
    return 100 * np.array([*np.mean(hits, axis=0), np.mean(precisions), np.mean(penalties)])


@pytest.mark.parametrize("name", WHOLE_GALLERY)
def test_one_gallery_of_all_views_agrees_with_a_loop_over_probes(name):
    types, is_probe, is_gallery, miss = WHOLE_GALLERY[name]
    table, features = made_up(types, ("seq0", "seq1"), noise=4.0)
    # subject 003 has no gallery: a miss, or left out
    sides = [(is_probe(row), is_gallery(row)) for row in table.itertuples()]
    kept = [p or (g and s != "003") for (p, g), s in zip(sides, table["subject"], strict=True)]
    table, features = table[kept].reset_index(drop=True), features[torch.tensor(kept)]
    rows = list(table.itertuples())
    probes = [i for i, row in enumerate(rows) if is_probe(row)]
    gallery = [i for i, row in enumerate(rows) if is_gallery(row)]
    lists = {"PROBE_SET": [*LISTED, "009-x-seq0"], "GALLERY_SET": LISTED}
    if name == "gallery_probe":
        ids = [f"{row.subject}-{row.type}-{row.view}" for row in rows]
        lists["GALLERY_SET"] = [ids[i] for i in gallery]
    found = evaluate_features(features, table, PROTOCOLS[name], lists=lists)
    expected = loop_over_probes(
        table, distance(features, features), probes, gallery, miss, own_view=True
    )
    assert len(found.hits) == len(probes)
    measured = [found.rank1["all"], found.scores["rank5"]["all"]]
    assert measured == pytest.approx(expected[:2]) and 0 < measured[0] < 100
    if name != "grew-labelled":
        averages = [found.scores[measure]["all"] for measure in ("mAP", "mINP")]
        assert averages == pytest.approx(expected[2:])
    absent = "1 of 7 sequences of PROBE_SET are not in the test set: 009-x-seq0"
    assert (absent in found.problems) == ("PROBE_SET" in PROTOCOLS[name].probes)
    problem = "they are left out, as" if not miss else "each counts as a miss"
    assert any(f"of 003 have no gallery sequence: {problem}" in line for line in found.problems)
    with pytest.raises(ValueError, match="of the types|needs (PROBE|GALLERY)_SET"):
        evaluate_features(features, table.assign(type="99"), PROTOCOLS[name])


def test_casia_bs_cross_view_gallery_excludes_the_probes_own_view():
    protocol = replace(PROTOCOLS["casia-b-cross-view"], views=("000", "018", "036"))
    table, features = made_up(CASIA_B_TYPES, protocol.views)
    found = evaluate_features(features, table, protocol)
    between = distance(features, features)
    gallery = table.index[table["type"].isin(protocol.gallery)]
    for condition, types in protocol.probes.items():
        probes = table.index[table["type"].isin(types)]
        expected = loop_over_probes(table, between, probes, gallery, miss=True, own_view=False)
        measures = (found.rank1, found.scores["rank5"], found.scores["mAP"])
        assert [measure[condition] for measure in measures] == pytest.approx(list(expected[:3]))
    assert found.rank1_by_view == {}


def test_ccpgs_second_rule_excludes_the_probes_own_camera_and_leaves_the_unmatched_out():
    types, views, conditions = VIEW_PAIRS["ccpg"]
    table, features = made_up(types, views)
    gone = (table["subject"] == "002") & table["type"].eq("U0_D3")
    table, features = table[~gone].reset_index(drop=True), features[torch.tensor(~gone.to_numpy())]
    found = evaluate_features(features, table, PROTOCOLS["ccpg"])
    cameras = table.assign(view=table["view"].str[:2])
    rows, between = list(table.itertuples()), distance(features, features)
    for condition, (is_probe, is_gallery) in conditions.items():
        probes = [i for i, row in enumerate(rows) if is_probe(row)]
        gallery = [i for i, row in enumerate(rows) if is_gallery(row)]
        expected = loop_over_probes(cameras, between, probes, gallery, miss=False, own_view=False)
        measured = [found.scores[f"reid_{m}"][condition] for m in ("rank1", "mAP", "mINP")]
        assert measured == pytest.approx(list(expected[[0, 2, 3]]))
        everything = found.rank1_by_view[condition].to_numpy().mean()
        assert found.scores["rank1_with_identical_view"][condition] == pytest.approx(everything)


@pytest.mark.parametrize("name", ["grew", "hid"])
def test_a_submission_lists_the_nearest_subjects_as_the_server_takes_them(name):
    people = [f"{n:05d}" for n in range(1, 13)]
    gallery, gallery_features = made_up(("01", "02"), ("default",), people)
    probe, probe_features = made_up(("03",), ("vB", "vA"), ("probe",), seed=1)
    if name == "hid":  # the folder between subject and `default` is the video
        probe = probe.assign(type=probe["view"], view="default")
    table = pd.concat([gallery, probe], ignore_index=True)
    features = torch.cat([gallery_features, probe_features])
    protocol = PROTOCOLS[name]
    found = evaluate_features(features, table, protocol)
    assert found.submission.iloc[:, 0].tolist() == ["vB", "vA"]
    between = distance(features, features)
    if protocol.submission.rerank:
        both = torch.tensor([24, 25, *range(24)])
        between[24:, :24] = rerank(between[both][:, both], probes=2)
    count = {"grew": 20, "hid": 1}[name]
    for i, row in zip((24, 25), found.submission.to_numpy().tolist(), strict=True):
        order = sorted(range(24), key=lambda j: between[i, j].item())[:count]
        subjects = [table["subject"][j] for j in order]
        assert row[1:] == ([int(s) for s in subjects] if name == "grew" else subjects)
    assert protocol.submission.rerank == (name == "hid")  # as in OpenGait
    assert ("re-ranked" in found.problems[0]) == (name == "hid")
    header = {"grew": ["videoId", "rank1", "rank2"], "hid": ["videoID", "label"]}[name]
    assert list(found.submission)[: len(header)] == header
    assert to_results(found)["rank1"] == {"all": None}
    with pytest.raises(ValueError, match="no probe"):
        evaluate_features(gallery_features, gallery, PROTOCOLS[name])


def test_a_submission_that_cannot_be_written_is_refused_before_training():
    people, grew = [f"{n:05d}" for n in range(1, 13)], PROTOCOLS["grew"]
    gallery, _ = made_up(("01", "02"), ("default",), people)
    probe, _ = made_up(("03",), ("v",), ("probe",))
    table = pd.concat([gallery, probe], ignore_index=True)
    check_test_set(table, grew)
    with pytest.raises(ValueError, match="gallery holds 18 sequences, .* lists the nearest 20"):
        check_test_set(table[6:], grew)
    with pytest.raises(ValueError, match="subjects as numbers, and the gallery has 00001train"):
        check_test_set(table.replace({"subject": {"00001": "00001train"}}), grew)


@pytest.mark.parametrize(
    ("views", "changed", "both"),
    [
        (("000", "018"), {"ranking": "whole_gallery", "identical_views": "included"}, 6),
        (("000", "018"), {"identical_views": "included"}, 6),
        (("000", "018"), {"ranking": "both"}, 6),
        (("000",), {}, 3),
        (("000", "018"), {}, 0),
        (("000", "018"), {"ranking": "whole_gallery"}, 0),
    ],
)
def test_a_probe_is_not_its_own_gallery(views, changed, both):
    """Without the pairs of equal views, one list may serve as probes and gallery."""
    table, _ = made_up(("00", "01"), views)
    protocol = Protocol(("0?",), ("01",), **changed)
    if not both:
        return check_test_set(table, protocol)
    with pytest.raises(ValueError, match=f"{both} test sequences are both probes and gallery"):
        check_test_set(table, protocol)


def test_a_data_set_of_one_view_shows_its_identical_view_and_says_so():
    table, features = made_up(("00", "01"), ("090",))
    found = evaluate_features(features, table, PROTOCOLS["oumvlp"])
    assert found.rank1["NM"] == found.rank1_by_view["NM"].loc["090", "090"] > 0
    assert found.problems == ("one view, 090: its accuracy is of identical views",)
    row = bootstrap_drop(found.hits, found.hits, 5).iloc[0]
    assert row["rank1_a"] == pytest.approx(found.rank1["NM"])


def test_a_declared_protocol_averages_over_probes_and_may_count_the_identical_view():
    own = {"gallery": ["01"], "probes": {"A": ["00"], "B": ["00/02*"]}, "ranking": "whole_gallery"}
    own["probes"]["B"] = ["*/00/09?"]
    table, features = made_up(("00", "01"), ("000", "090"))
    found = evaluate_features(features, table, ProtocolCfg(**own).build())
    assert tuple(found.rank1) == ("A", "B") and len(found.hits) == 9
    for condition in found.rank1:
        hits = found.hits.query("condition == @condition")["rank1"]
        assert found.rank1[condition] == pytest.approx(100 * hits.mean())
    rows = bootstrap_drop(found.hits, found.hits, 5, averaging=Averaging("probes"))
    assert rows["rank1_a"].tolist() == pytest.approx(list(found.rank1.values()))
    pairs = Protocol(("01",), ("00",), identical_views="included")
    found = evaluate_features(features, table, pairs)
    assert found.rank1["all"] == pytest.approx(found.rank1_by_view["all"].to_numpy().mean())
    assert from_results(to_results(found))["all"].shape == (2, 2)


def test_a_misspelt_type_of_an_own_protocol_is_named():
    table, features = made_up(("00", "01"), ("000", "090"))
    found = evaluate_features(features, table, Protocol(("01",), ("00", "O0")))
    assert "no sequence matches 'O0'; the types are 00, 01" in found.problems


@pytest.mark.parametrize("value", [5, ["casia-b"], True])
def test_a_protocol_that_is_neither_a_name_nor_a_declaration_is_refused(value):
    with pytest.raises(ValueError, match="write the name of a built-in one \\(casia-b, "):
        protocol_of(value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"probes": {}}, "probes is empty"),
        ({"gallery": {"A": ["01"]}}, r"conditions \['A'\] and probes \['all'\]"),
        ({"gallery": "01"}, "write a list of patterns"),
        ({"report": ["rank1", "mAP"]}, "mAP, which needs one gallery of all views"),
        ({"report": ["rank5"]}, "add rank1"),
        ({"submission": {"columns": ["id", "label"]}}, "write ranking: whole_gallery"),
        ({"ranking": "pairs"}, "whole_gallery"),
        ({"viewz": ["000"]}, "unknown key 'viewz'; did you mean 'views'"),
    ],
)
def test_a_protocol_that_contradicts_itself_is_refused(changed, words):
    with pytest.raises(ValueError, match=words):
        ProtocolCfg(**{"gallery": ["01"], "probes": ["00"]} | changed)

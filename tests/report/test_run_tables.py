"""Tables of one run, from hand-made networks, result files and saliency scores."""

import pandas as pd
import pytest
import torch
from small_experiment import SMALL

from workbook import runs
from workbook.config import load_experiment
from workbook.report import run_tables
from workbook.steps import build_network

pytestmark = pytest.mark.usefixtures("workspace")


def network(*layers):
    width = int(layers[-1].removeprefix("BC-"))
    backbone = {"type": "Plain", "layers_cfg": list(layers)}
    heads = {"in_channels": width, "out_channels": 4, "parts_num": 4}
    changed = {"model_cfg.backbone_cfg": backbone, "model_cfg.SeparateFCs": heads}
    return build_network(load_experiment(None, SMALL | changed), torch.device("cpu"))


def results(macs, **others):
    rank1 = {"NM": 90.0, "BG": 80.0, "CL": 70.0}
    return {
        "rank1": rank1,
        "conditions": list(rank1),
        "params": 100,
        "macs_per_frame": macs,
        "file_bytes": 4000,
    } | others


def test_channels_kept_counts_the_backbones_convolutions_in_order():
    table = run_tables.channels_kept(network("BC-4", "M", "BC-8"), network("BC-3", "M", "BC-2"))
    assert table.to_dict("list") == {
        "layer": ["feature.0.conv", "feature.3.conv"],
        "kept": [3, 2],
        "total": [4, 8],
    }


def test_channels_kept_refuses_networks_with_other_layers():
    with pytest.raises(ValueError, match=r"layers differ: .*feature.3.conv"):
        run_tables.channels_kept(network("BC-4", "M", "BC-8"), network("BC-4"))


def test_the_trade_table_takes_the_low_bit_file_and_computes_the_bops_of_float_networks():
    table = run_tables.trade_table(
        {
            "baseline": results(16_000_000),
            "hesso": results(4_000_000, file_bytes=1500),
            "geta": results(2_000_000, relative_bops=0.5, lowbit_bytes=250),
        }
    )
    assert table.index.tolist() == ["dense", "HESSO", "GETA"]
    assert table["MMAC"].tolist() == [16, 4, 2]
    assert table["relative_bops"].tolist() == [100, 25, 0.5]  # 4 of 16 MMAC, all in float
    assert table["file_kb"].tolist() == [4, 1.5, 0.25]
    assert table.loc["GETA", ["rank1_NM", "rank1_BG", "rank1_CL"]].tolist() == [90, 80, 70]
    assert table["params"].tolist() == [100] * 3 and table["params"].dtype == int


@pytest.mark.parametrize(
    ("made", "compressed", "found"),
    [
        (["geta", "baseline", "ptq", "hesso"], "geta", ["baseline", "hesso", "ptq", "geta"]),
        (["hesso", "baseline"], "hesso", ["baseline", "hesso"]),
        (["geta", "baseline"], "geta", ["baseline", "geta"]),
    ],
)
def test_finished_stages_are_in_order_and_one_of_them_is_the_compressed_one(
    made, compressed, found
):
    for stage in made:
        runs.save_results("r", stage, {"params": len(stage)})
    assert run_tables.compressed_stage("r") == compressed
    results = run_tables.finished("r")
    assert list(results) == found
    assert [results[stage]["params"] for stage in found] == [len(stage) for stage in found]


@pytest.mark.parametrize(("made", "missing"), [("hesso", "baseline"), ("baseline", "geta")])
def test_a_run_without_a_baseline_or_a_compressed_network_is_not_finished(made, missing):
    runs.save_results("r", made, {})
    with pytest.raises(runs.MissingRunError, match=f"runs/r/{missing}/results.json"):
        run_tables.finished("r")


def test_final_scores_are_those_of_the_cut_or_of_the_last_period():
    folder = runs.stage_dir("r", "hesso")
    folder.mkdir(parents=True)
    prefix = "Backbone.forward_block."
    rows = [  # period, group, channel, score, state; b comes first in the network
        (0, f"{prefix}b", 0, 0.5, "kept"),
        (0, f"{prefix}b", 1, 0.1, "chosen"),
        (0, f"{prefix}a", 0, 0.7, "kept"),
        (1, f"{prefix}b", 0, 0.2, "chosen"),
        (1, f"{prefix}b", 1, 0.0, "pruned"),
        (1, f"{prefix}a", 0, 0.9, "kept"),
    ]
    columns = ["period", "group", "channel", "score", "state"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "saliency.csv", index=False)
    found = run_tables.final_scores("r", "hesso")
    assert list(found) == ["layer", "channel", "score", "kept"]
    by_channel = {(layer, channel): (score, kept) for layer, channel, score, kept in found.values}
    assert by_channel == {("b", 1): (0.1, False), ("b", 0): (0.2, False), ("a", 0): (0.9, True)}
    assert found["layer"].tolist() == ["b", "b", "a"]


def test_a_stage_without_scores_names_the_notebook_to_run():
    with pytest.raises(runs.MissingRunError, match=r"03_geta_train.ipynb with run='r'"):
        run_tables.final_scores("r")

"""Tables of one run: the cost and accuracy of its networks, and which channels were cut."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gaitlib.evaluate import conditions_of
from gaitlib.model import BACKBONE, GaitBase, network_cost
from gaitlib.system.errors import UserError
from workbook import runs


def short_name(layer: str) -> str:
    """Return a layer's name as tables show it: without the backbone's prefix."""
    return layer.removeprefix(BACKBONE)


def channels_kept(dense: GaitBase, small: GaitBase) -> pd.DataFrame:
    """Return how many output channels each convolution of the backbone kept.

    Args:
        dense: the network before pruning.
        small: the network after it, with the same layers.

    Returns:
        One row per convolution, in execution order: layer, kept, total.

    Raises:
        UserError: if the two have different layers.
    """
    tables = [network_cost.layer_table(network) for network in (dense, small)]
    before, after = (t[t["layer"].str.startswith(BACKBONE)] for t in tables)
    if list(before["layer"]) != list(after["layer"]):
        raise UserError(f"layers differ: {list(before['layer'])} and {list(after['layer'])}")
    counts = {"kept": after["out_channels"], "total": before["out_channels"]}
    return pd.DataFrame({"layer": before["layer"].map(short_name), **counts})


def finished(run: str) -> dict[str, dict[str, Any]]:
    """Return the results of a run's finished stages, in the order of STAGES (dense first).

    Raises:
        MissingRunError: if the baseline, or every compressing stage, has not finished.
    """
    found = runs.finished(run)
    wanted = {"baseline", compressed_stage(run), *found}
    return {stage: runs.load_results(run, stage) for stage in runs.STAGES if stage in wanted}


def compressed_stage(run: str) -> str:
    """Return the stage of a run's compressed network: the first that has finished.

    The order is ``geta``, ``hesso``, ``torch_pruning``; ``geta`` if none has finished.
    """
    found = runs.finished(run)
    return next((s for s in ("geta", "hesso", "torch_pruning") if s in found), "geta")


def trade_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return accuracy and cost, one row per network.

    Columns:
        rank1_<condition>: %, one column per condition of the protocol.
        params: count. MMAC: of the backbone, per frame. relative_bops: % of the dense network's.
        file_kb: size of a quantized network's file, or of the float weights in torch's format.

    Args:
        results: from `finished`.
    """
    dense_macs = results["baseline"]["macs_per_frame"]
    rows = {}
    for stage, result in results.items():
        in_float = 100 * result["macs_per_frame"] / dense_macs  # both have 32 x 32 bits
        rows[runs.STAGES[stage].words] = {
            **{f"rank1_{c}": result["rank1"][c] for c in conditions_of(result)},
            "params": result["params"],
            "MMAC": result["macs_per_frame"] / 1e6,
            "relative_bops": result.get("relative_bops", in_float),
            "file_kb": result.get("lowbit_bytes", result["file_bytes"]) / 1e3,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"params": int})


def final_scores(run: str, stage: str = "geta") -> pd.DataFrame:
    """Return the last saliency score of each channel: layer, channel, score, kept.

    For a channel that was cut, it is the score of the pruning period that chose it. For one that
    was kept, it is the score of the last period. ``layer`` is the first layer of the channel's
    group.

    Args:
        run: folder below runs/.
        stage: the compressing stage.

    Raises:
        MissingRunError: if the stage wrote no scores.
    """
    table = pd.read_csv(runs.stage_file(run, stage, "saliency.csv"))
    last = (table["state"] == "kept") & (table["period"] == table["period"].max())
    decided = table[last | (table["state"] == "chosen")].set_index("group")
    decided = decided.loc[table["group"].unique()].reset_index()  # in the order of the network
    decided["layer"] = decided["group"].map(short_name)
    decided["kept"] = decided["state"] == "kept"
    return decided[["layer", "channel", "score", "kept"]]

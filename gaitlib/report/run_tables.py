"""Tables about one run: what its networks cost, what they recognise, and where the cuts fell."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gaitlib import runs
from gaitlib.evaluate import CONDITIONS
from gaitlib.model import GaitBase, network_cost


def short_name(layer: str) -> str:
    """Return a layer's name as tables show it: the backbone's without its prefix."""
    return layer.removeprefix("Backbone.forward_block.")


def channels_kept(dense: GaitBase, small: GaitBase) -> pd.DataFrame:
    """Return how many output channels each convolution kept: name, kept, total, in order."""
    before, after = (
        table[table["layer"].str.startswith("Backbone.")]
        for table in (network_cost.layer_table(dense), network_cost.layer_table(small))
    )
    if list(before["layer"]) != list(after["layer"]):
        raise ValueError(f"not the same layers: {list(before['layer'])}, {list(after['layer'])}")
    return pd.DataFrame(
        {
            "name": before["layer"].map(short_name),
            "kept": after["out_channels"],
            "total": before["out_channels"],
        }
    )


def finished(run: str) -> dict[str, dict[str, Any]]:
    """Return the results of the stages that a run has finished, dense first, compressed last.

    Raises:
        MissingRunError: if the baseline, or every compressing stage, has not finished.
    """
    found = runs.finished(run)
    wanted = {"baseline", compressed_stage(run), *found}
    return {stage: runs.load_results(run, stage) for stage in runs.STAGES if stage in wanted}


def compressed_stage(run: str) -> str:
    """Return the stage whose network a run is about: ``geta``, or ``hesso`` in a run without bits.

    A run that has finished neither is about ``geta``.
    """
    found = runs.finished(run)
    return "hesso" if "hesso" in found and "geta" not in found else "geta"


def trade_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return what was paid and saved, a row a network.

    Columns:
        rank1_NM, rank1_BG, rank1_CL: %.
        params: numbers. MMAC: of the backbone, a frame. relative_bops: % of the dense network's.
        file_kb: of the low-bit file, or of the float weights where there are no bits.

    Args:
        results: of `finished`.
    """
    dense_macs = results["baseline"]["macs_per_frame"]
    rows = {}
    for stage, result in results.items():
        in_float = 100 * result["macs_per_frame"] / dense_macs  # 32 x 32 bits, as the dense one
        rows[runs.STAGES[stage].words] = {
            **{f"rank1_{c}": result["rank1"][c] for c in CONDITIONS},
            "params": result["params"],
            "MMAC": result["macs_per_frame"] / 1e6,
            "relative_bops": result.get("relative_bops", in_float),
            "file_kb": result.get("lowbit_bytes", result["file_bytes"]) / 1e3,
        }
    return pd.DataFrame.from_dict(rows, orient="index").astype({"params": int})


def final_scores(run: str, stage: str = "geta") -> pd.DataFrame:
    """Return the score that decided over each group of channels: layer, channel, score, kept.

    A group that was cut has its score at the choice that cut it; one that was kept, its score at
    the last choice. ``layer`` is the first of the layers whose channels go together.

    Args:
        run: folder below runs/.
        stage: the compressing stage.

    Raises:
        MissingRunError: if the stage has left no scores.
    """
    table = pd.read_csv(runs.stage_file(run, stage, "saliency.csv"))
    kept = table["state"] == "kept"
    decided = table[
        (table["state"] == "chosen") | (kept & (table["period"] == table["period"].max()))
    ]
    decided = decided.assign(
        layer=decided["group"].map(short_name),
        kept=decided["state"] == "kept",
    )
    order = {group: place for place, group in enumerate(table["group"].unique())}
    decided = decided.sort_values("group", key=lambda group: group.map(order), kind="stable")
    return decided[["layer", "channel", "score", "kept"]].reset_index(drop=True)

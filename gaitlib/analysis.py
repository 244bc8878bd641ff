"""Tables about one compression, read from two networks or from a run's files."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from gaitlib import profile, runs
from gaitlib.compress.subnet import load_compressed, load_dense
from gaitlib.evaluate import CONDITIONS
from gaitlib.model import GaitBase


def load_networks(run: str, device: str | torch.device = "cpu") -> tuple[GaitBase, GaitBase]:
    """Rebuild a run's compressed network, and the dense one it was cut from (new weights).

    Raises:
        MissingRunError: if the GETA stage has not finished.
    """
    folder = runs.stage_file(run, "geta", "compressed/architecture.json").parent
    return load_dense(folder).to(device), load_compressed(folder, device=device)


def channels_kept(dense: GaitBase, small: GaitBase) -> pd.DataFrame:
    """Return how many output channels each convolution kept: name, kept, total, in order."""
    before, after = (
        table[table["layer"].str.startswith("Backbone.")]
        for table in (profile.layer_table(dense), profile.layer_table(small))
    )
    if list(before["layer"]) != list(after["layer"]):
        raise ValueError(f"not the same layers: {list(before['layer'])}, {list(after['layer'])}")
    return pd.DataFrame(
        {
            "name": before["layer"].str.replace("Backbone.forward_block.", "", regex=False),
            "kept": after["out_channels"],
            "total": before["out_channels"],
        }
    )


def trade(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> pd.DataFrame:
    """Return what was paid and saved: a row a measure, with dense, compressed and unit.

    Args:
        dense: results of the baseline stage.
        compressed: results of the GETA stage, which timed both networks in one process.
    """
    rows = [
        (f"rank-1 {condition}", dense["rank1"][condition], compressed["rank1"][condition], "%")
        for condition in CONDITIONS
    ]
    rows += [
        (name, dense[key] / scale, compressed[key] / scale, unit)
        for name, key, scale, unit in (
            ("parameters", "params", 1, ""),
            ("multiply-adds", "macs_per_frame", 1, "a frame"),
            ("file", "file_bytes", 1e3, "kB"),
        )
    ]
    rows += [
        (
            f"latency, {clips}",
            compressed["dense"]["latency_ms"][key],
            compressed["latency_ms"][key],
            "ms",
        )
        for clips, key in (("1 clip", "batch_1"), ("16 clips", "batch_16"))
    ]
    return pd.DataFrame(rows, columns=["measure", "dense", "compressed", "unit"])


def compare_latency(
    networks: Mapping[str, GaitBase], batches: Sequence[int] = (1, 16), rounds: int = 5
) -> pd.DataFrame:
    """Time networks in turn, A B A B, so that what else the machine does hits all alike.

    Args:
        networks: name to network; clips of 30 frames, embeddings alone.
        batches: clips at a time.
        rounds: measurements of each.

    Returns:
        A row a batch size, a column a network: median milliseconds.
    """
    rows = {}
    for batch in batches:
        times = [
            [profile.measure_latency(net, batch, repeats=2, warmup=1) for net in networks.values()]
            for _ in range(rounds)
        ]
        rows[f"{batch} clip(s)"] = np.median(times, axis=0)
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(networks))


def final_scores(run: str) -> pd.DataFrame:
    """Return the score that decided over each group of channels: layer, channel, score, kept.

    A group that was cut has its score at the choice that cut it; one that was kept, its score at
    the last choice. ``layer`` is the first of the layers whose channels go together.

    Raises:
        MissingRunError: if the GETA stage has left no scores.
    """
    table = pd.read_csv(runs.stage_file(run, "geta", "saliency.csv"))
    kept = table["state"] == "kept"
    decided = table[
        (table["state"] == "chosen") | (kept & (table["period"] == table["period"].max()))
    ]
    decided = decided.assign(
        layer=decided["group"].str.replace("Backbone.forward_block.", "", regex=False),
        kept=decided["state"] == "kept",
    )
    order = {group: place for place, group in enumerate(table["group"].unique())}
    decided = decided.sort_values("group", key=lambda group: group.map(order), kind="stable")
    return decided[["layer", "channel", "score", "kept"]].reset_index(drop=True)

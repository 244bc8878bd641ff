"""Tables about one compression, read from two networks or from a run's files."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gaitlib import profile, runs
from gaitlib.compress.subnet import load_compressed
from gaitlib.evaluate import CONDITIONS
from gaitlib.model import GaitBase


def load_compressed_run(run: str, device: str = "cpu") -> GaitBase:
    """Rebuild the compressed network that a run's results speak of.

    Raises:
        MissingRunError: if the GETA stage has not finished.
    """
    name = runs.load_results(run, "geta")["compressed_file"]
    return load_compressed(runs.stage_file(run, "geta", f"compressed/{name}"), device=device)


def channels_kept(dense: GaitBase, small: GaitBase) -> pd.DataFrame:
    """Return how many output channels each convolution kept: name, kept, total, in order."""
    before, after = (
        table[table["layer"].str.startswith("Backbone.")]
        for table in (profile.layer_table(dense), profile.layer_table(small))
    )
    return pd.DataFrame(
        {
            "name": before["layer"].str.replace("Backbone.forward_block.", "", regex=False),
            "kept": after["out_channels"],
            "total": before["out_channels"],
        }
    )


def trade(dense: Mapping[str, Any], compressed: Mapping[str, Any]) -> pd.DataFrame:
    """Return what was paid and saved: a row a measure, with dense, compressed and unit."""
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
        (f"latency, {clips}", dense["latency_ms"][key], compressed["latency_ms"][key], "ms")
        for clips, key in (("1 clip", "batch_1"), ("16 clips", "batch_16"))
    ]
    return pd.DataFrame(rows, columns=["measure", "dense", "compressed", "unit"])


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

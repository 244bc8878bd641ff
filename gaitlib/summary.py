"""One table of a finished run: what the compression cost and what it saved."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from gaitlib import runs

COLUMNS = {
    "NM": lambda r: f"{r['rank1']['NM']:.1f}",
    "BG": lambda r: f"{r['rank1']['BG']:.1f}",
    "CL": lambda r: f"{r['rank1']['CL']:.1f}",
    "parameters": lambda r: f"{r['params']:,}",
    "MMAC/frame": lambda r: f"{r['macs_per_frame'] / 1e6:.2f}",
    "bits w/a": lambda r: f"{r['bits']['weights']:.1f}/{r['bits']['activations']:.1f}",
    "rel. BOPs %": lambda r: f"{r['relative_bops']:.2f}",
    "kB": lambda r: f"{r.get('lowbit_bytes', r['file_bytes']) / 1e3:.0f}",
    "ms, 1 clip": lambda r: f"{r['latency_ms']['batch_1']:.1f}",
    "ms, 16 clips": lambda r: f"{r['latency_ms']['batch_16']:.1f}",
}


def compare(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the table: a row a network, text cells; what was not measured is a dash."""
    rows = {}
    for name, result in results.items():
        row = {}
        for column, text in COLUMNS.items():
            try:
                row[column] = text(result)
            except (KeyError, TypeError):
                row[column] = "-"
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(COLUMNS))


def summary_table(run: str) -> str:
    """Return the table of the stages that a run has finished, and where its files lie.

    Raises:
        MissingRunError: if no stage has finished.
    """
    found = {runs.NAMES[s]: runs.load_results(run, s) for s in runs.finished(run) or runs.NAMES}
    if {"dense", "compressed"} <= found.keys():  # times from one process
        found["dense"]["latency_ms"] = found["compressed"]["dense"]["latency_ms"]
    lines = [compare(found).to_string()]
    if "compressed" in found:
        result = found["compressed"]
        lines.append(
            f"group sparsity {result['group_sparsity']:.3f}; largest relative difference between "
            f"the zeroed network and the cut one {result['full_equals_compressed']:.1e}"
        )
    lines.append(f"results and checkpoints: {runs.RUNS / run}")
    lines.append(f"figures:                 {runs.FIGURES / run}")
    return "\n".join(lines)

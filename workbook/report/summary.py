"""One table of a finished run: the accuracy and the costs of its networks."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from gaitlib.evaluate import conditions_of
from workbook import runs
from workbook.report.run_tables import compressed_stage

#: What each cell of `compare` says of a stage's results, after the rank-1 of each condition.
COLUMNS = {
    "parameters": lambda r: f"{r['params']:,}",
    "MMAC/frame": lambda r: f"{r['macs_per_frame'] / 1e6:.2f}",
    "bits w/a": lambda r: f"{r['bits']['weights']:.1f}/{r['bits']['activations']:.1f}",
    "rel. BOPs %": lambda r: f"{r['relative_bops']:.2f}",
    "kB": lambda r: f"{r.get('lowbit_bytes', r['file_bytes']) / 1e3:.0f}",
    "ms, 1 clip": lambda r: _two_digits(r["latency_ms"]["batch_1"]),
    "ms, 16 clips": lambda r: _two_digits(r["latency_ms"]["batch_16"]),
}


def compare(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return a table of text, one row per network; a missing measurement is a dash.

    Args:
        results: the network's name to its results.json.
    """
    tested = dict.fromkeys(
        c for result in results.values() if "conditions" in result for c in conditions_of(result)
    )
    columns = {c: lambda r, c=c: f"{r['rank1'][c]:.1f}" for c in tested} | COLUMNS
    cells = {
        name: {column: _written(write, result) for column, write in columns.items()}
        for name, result in results.items()
    }
    return pd.DataFrame.from_dict(cells, orient="index", columns=list(columns))


def _written(write: Callable[[Mapping[str, Any]], str], result: Mapping[str, Any]) -> str:
    try:
        return write(result)
    except (KeyError, TypeError):
        return "-"


def _two_digits(milliseconds: float) -> str:
    """Write a time with the two digits that repeat: 21.2 as "21", 308 as "310"."""
    return f"{float(f'{milliseconds:.2g}'):.{milliseconds < 10:d}f}"


def tests_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return the accuracy of one network on several data sets, one row per set and condition.

    Args:
        results: the data set's name to what `gaitlib.evaluate.to_results` returned.

    Returns:
        columns dataset, protocol, condition, rank1 and, as far as measured, rank5, rank10, rank20,
        mAP and mINP, in %.
    """
    measures = ("rank1", "rank5", "rank10", "rank20", "mAP", "mINP")
    rows = [
        {"dataset": name, "protocol": result["protocol"], "condition": condition}
        | {m: result[m][condition] for m in measures if m in result}
        for name, result in results.items()
        for condition in conditions_of(result)
    ]
    return pd.DataFrame(rows)


def summary_table(run: str) -> str:
    """Return the table of a run's finished stages, and the folders of its files.

    Raises:
        MissingRunError: if no stage has finished.
    """
    stages = runs.finished(run) or list(runs.STAGES)
    found = {stage: runs.load_results(run, stage) for stage in stages}
    compressed = found.get(compressed_stage(run))
    if compressed is not None and "baseline" in found:  # both timed in the same process
        found["baseline"]["latency_ms"] = compressed["dense"]["latency_ms"]
    lines = [compare({runs.STAGES[s].words: result for s, result in found.items()}).to_string()]
    if compressed is not None and "group_sparsity" in compressed:
        lines.append(
            f"group sparsity {compressed['group_sparsity']:.3f}; largest relative difference "
            "between the full-size network with zeros and the small one "
            f"{compressed['full_equals_compressed']:.1e}"
        )
    if "training_macs" in found.get("baseline", {}):
        counted = [stage for stage, result in found.items() if "training_macs" in result]
        lines += [_training_cost(found, stage) for stage in counted if stage != "baseline"]
    lines.append(f"results and checkpoints: {runs.runs_folder() / run}")
    if (figures := runs.figures_folder() / run).is_dir():  # the notebooks draw them
        lines.append(f"figures:                 {figures}")
    return "\n".join(lines)


def _training_cost(results: Mapping[str, Mapping[str, Any]], stage: str) -> str:
    """Say what a stage's steps cost, as shares of as many steps of the baseline.

    Args:
        results: by stage; the baseline and the stage both have ``training_macs``.
        stage: a compressing stage.
    """
    one, dense = results[stage], results["baseline"]
    macs, seconds = (
        (one[key] / one["iterations"]) / (dense[key] / dense["iterations"])
        for key in ("training_macs", "training_seconds")
    )
    return (
        f"training {runs.STAGES[stage].words}: {one['iterations']} steps for {macs:.2f} of the "
        f"multiply-adds and {seconds:.2f} of the time of as many dense ones"
    )

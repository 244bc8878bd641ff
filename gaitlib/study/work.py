"""Train, compress and test one point of a study: what `notebooks/point.ipynb` calls."""

import json
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from gaitlib import analysis, profile, runs, stages
from gaitlib.checkpoint import find_checkpoint
from gaitlib.config import Study
from gaitlib.study.methods import METHODS, narrowed
from gaitlib.study.points import RESULTS, Point, has_results, load_point, point_dir, run_of

OnHistory = Callable[[pd.DataFrame], None]


def run_point(
    study: str, point: Point, device: torch.device, on_history: OnHistory | None = None
) -> dict[str, Any]:
    """Train, compress and test a point, and write its results.json last of all.

    What it needs of other points is found in its own folder too, so that a point is a run like any
    other. Training that was stopped goes on from its last checkpoint; what is done is read, not
    done again.

    Args:
        study: folder below runs/.
        point: what it needs is done.
        device: where it is trained and tested.
        on_history: as `gaitlib.stages.run_stage`.

    Returns:
        The results: those of the point's stage, and ``point``, ``method``, ``settings``,
        ``digest``, ``total_iterations`` (with the baseline's), ``layers`` (channels and bits) and
        ``seconds`` (of the last try).
    """
    if has_results(study, point):
        return load_point(study, point)
    began, run = time.monotonic(), run_of(study, point.name)
    trained = _going_on(study, point)
    about = {"seed": point.seed, "device": device}
    extra = {}
    if point.starts_from is not None:
        _lend(study, point, point.starts_from)
    match point.method:
        case "ptq":
            _lend(study, point, "pruned", as_stage="pruned")
            _lend(study, point, "geta")
            stages.round_pruned(trained, run, stages.open_data(trained), **about)
        case "uniform":
            trained = narrowed(trained, _macs_of_pruned(study, point))
            extra["dense"] = _costs_of(point.study)
            stages.run_stage(trained, run, point.stage, on_history=on_history, **about)
        case "torch_pruning":
            macs = _macs_of_pruned(study, point)
            stages.cut_and_fine_tune(trained, run, macs, on_history=on_history, **about)
        case _:
            stages.run_stage(trained, run, point.stage, on_history=on_history, **about)
    results = runs.load_results(run, point.stage)
    results |= {
        **extra,
        "point": point.name,
        "method": point.method,
        "settings": dict(point.settings),
        "digest": point.digest,
        "total_iterations": point.total_iterations,
        "layers": _layers(point, trained, run, results),
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    runs.write_atomically(point_dir(study, point) / RESULTS, text)
    return results


def _going_on(study: str, point: Point) -> Study:
    """Return the point's study, which goes on where an interrupted try has stopped."""
    folder, cfg = point_dir(study, point) / point.stage / "checkpoints", point.study.trainer_cfg
    begun = find_checkpoint(folder, cfg.save_name, "latest") is not None
    compression = point.study.compression
    resumes = compression is None or compression.implementation == "gaitlib"
    if not (begun and resumes):
        return point.study
    going_on = cfg.model_copy(
        update={"restore_hint": "latest", "optimizer_reset": False, "scheduler_reset": False}
    )
    return point.study.model_copy(update={"trainer_cfg": going_on})


def _macs_of_pruned(study: str, point: Point) -> int:
    results = runs.load_results(run_of(study, point.needs["pruned"]), METHODS["pruned"].stage)
    return results["macs_per_frame"]


def _costs_of(study: Study) -> dict[str, int]:
    model = stages.build_network(study, torch.device("cpu"))
    return {
        "params": profile.count_parameters(model),
        "macs_per_frame": profile.macs_per_frame(model),
    }


def _layers(
    point: Point, trained: Study, run: str, results: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return each convolution's channels, kept and in all, and its bits, in the order they run."""
    if point.stage == "baseline":
        cpu = torch.device("cpu")
        dense, small = (stages.build_network(study, cpu) for study in (point.study, trained))
    else:
        dense, small = analysis.load_networks(
            run, stage="pruned" if point.stage == "ptq" else "geta"
        )
    table = analysis.channels_kept(dense, small).rename(columns={"name": "layer"})
    bits = {analysis.short_name(row["layer"]): row for row in results.get("bits_by_layer", ())}
    for column in ("weight_bits", "activation_bits"):
        table[column] = [bits.get(layer, {}).get(column, 32) for layer in table["layer"]]
    return table.to_dict("records")


def _lend(study: str, point: Point, method: str, as_stage: str | None = None) -> None:
    """Put a stage of a point that this one needs into its run, without a second copy on the disk.

    Args:
        study: folder below runs/.
        point: the one that needs it.
        method: of the one that lends.
        as_stage: what the stage is called here; as there if None.
    """
    stage = METHODS[method].stage
    source = runs.stage_dir(run_of(study, point.needs[method]), stage)
    target = runs.stage_dir(run_of(study, point.name), as_stage or stage)
    if target.exists():  # what was lent to an earlier try
        shutil.rmtree(target)
    shutil.copytree(source, target, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)

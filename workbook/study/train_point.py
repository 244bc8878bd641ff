"""Train, compress and test one point of a study: what `notebooks/point.ipynb` calls."""

import json
import os
import shutil
import time
from collections.abc import Callable
from typing import Any

import pandas as pd
import torch

from gaitlib.model import network_cost
from gaitlib.system.files import write_atomically
from gaitlib.train.checkpoint import find_checkpoint
from workbook import runs, steps
from workbook.config import Experiment
from workbook.report.run_tables import channels_kept, short_name
from workbook.runs import Run
from workbook.steps.networks import newest_checkpoint
from workbook.study import methods
from workbook.study.points import RESULTS, TEACHER, Point, has_results, load_point, point_dir

OnHistory = Callable[[pd.DataFrame], None]


def run_point(
    run: str, point: Point, device: torch.device, on_history: OnHistory | None = None
) -> dict[str, Any]:
    """Train, compress and test a point, then write its results.json.

    Stages that it needs from other points are hard-linked into its folder, so that a point is a run
    like any other. Interrupted training continues from its last checkpoint. A point that already
    has its results is not trained again.

    Args:
        run: the study's folder below runs/.
        point: the points that it needs are done.
        device: where to train and test it.
        on_history: as in `workbook.steps.Watch`.

    Returns:
        The results of the point's stage, and ``point``, ``method``, ``settings``, ``digest``,
        ``total_iterations`` and ``total_training_macs`` (including the baseline's), ``layers``
        (channels and bits) and ``seconds`` (of the last attempt).
    """
    if has_results(run, point):
        return load_point(run, point)
    began, watch = time.monotonic(), steps.Watch(on_history=on_history)
    experiment = _resumed_if_begun(run, point)
    extra = {}
    if point.starts_from is not None:
        _link_stage(run, point, point.starts_from)
    if point.stage == "baseline" and methods.METHODS[point.method].is_cut_to_macs:
        experiment = methods.narrowed(experiment, _macs_asked(run, point))
        dense = steps.build_network(point.experiment, torch.device("cpu"))
        extra["dense"] = {
            "params": network_cost.count_parameters(dense),
            "macs_per_frame": network_cost.macs_per_frame(dense),
        }
    if point.method == "only_train_once" and "hesso" in point.needs:
        sparsity = _results_of(run, point, "hesso")["group_sparsity"]
        experiment = methods.pruned_with(experiment, target_group_sparsity=sparsity)
    if TEACHER in point.needs:
        teacher = newest_checkpoint(Run(f"{run}/{point.needs[TEACHER]}", experiment), "baseline")
        experiment = methods.with_trainer(experiment, teacher=str(teacher))
    this = Run(f"{run}/{point.name}", experiment, point.seed, device)
    match point.method:
        case "ptq":
            for method in point.needs.keys() - {point.starts_from}:
                _link_stage(run, point, method)
            steps.round_hesso(this, steps.open_data(experiment))
        case "torch_pruning":
            macs, fair = _macs_asked(run, point), point.budget is not None
            steps.cut_and_fine_tune(this, macs, watch, isomorphic=fair)
        case _:
            steps.run_stage(this, point.stage, watch)
    results = runs.load_results(this.name, point.stage)
    results |= {
        **extra,
        "point": point.name,
        "method": point.method,
        "settings": dict(point.settings),
        "digest": point.digest,
        "total_iterations": point.total_iterations,
        **_total_training_macs(this.name, point),
        "layers": _layers(point, this, results),
        "seconds": round(time.monotonic() - began, 1),
    }
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    write_atomically(point_dir(run, point) / RESULTS, text)
    return results


def _resumed_if_begun(run: str, point: Point) -> Experiment:
    """Return the point's experiment, set to continue from its last checkpoint if it has one.

    only_train_once's own HESSO cannot be resumed, so its experiment is returned unchanged.
    """
    folder = point_dir(run, point) / point.stage / "checkpoints"
    cfg, compression = point.experiment.trainer_cfg, point.experiment.compression
    has_begun = find_checkpoint(folder, cfg.save_name, "latest") is not None
    can_resume = compression is None or compression.implementation == "gaitlib"
    if not (has_begun and can_resume):
        return point.experiment
    again = {"restore_hint": "latest", "optimizer_reset": False, "scheduler_reset": False}
    return methods.with_trainer(point.experiment, **again)


def _macs_asked(run: str, point: Point) -> int:
    """Return the MACs of the needed ``hesso`` point, or without one those of the budget."""
    if "hesso" in point.needs:
        return _results_of(run, point, "hesso")["macs_per_frame"]
    return methods.absolute_macs(point.experiment, point.budget)


def _results_of(run: str, point: Point, method: str) -> dict[str, Any]:
    """Return the results of a needed point."""
    return runs.load_results(f"{run}/{point.needs[method]}", methods.METHODS[method].stage)


def _total_training_macs(run: str, point: Point) -> dict[str, int]:
    """Return the multiply-adds that trained a point's weights, those of its start included.

    Args:
        run: the point's own, which the stages of its start are linked into.
        point: its stage is finished.
    """
    # ptq rounds a network and trains none
    trained = methods.rounded_method(point.experiment) if point.method == "ptq" else point.method
    stages = [methods.METHODS[m].stage for m in (point.starts_from, trained) if m is not None]
    parts = [runs.load_results(run, stage).get("training_macs") for stage in stages]
    return {} if None in parts else {"total_training_macs": sum(parts)}


def _layers(point: Point, run: Run, results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each convolution's channels (kept and total) and bits, in execution order."""
    if point.stage == "baseline":
        cpu = torch.device("cpu")
        networks = [steps.build_network(one, cpu) for one in (point.experiment, run.experiment)]
    else:
        networks = steps.load_networks(run, "hesso" if point.stage == "ptq" else point.stage)
    table = channels_kept(*networks)
    bits = {short_name(row["layer"]): row for row in results.get("bits_by_layer", ())}
    for column in ("weight_bits", "activation_bits"):
        table[column] = [bits.get(layer, {}).get(column, 32) for layer in table["layer"]]
    return table.to_dict("records")


def _link_stage(run: str, point: Point, method: str) -> None:
    """Hard-link a stage of a needed point into this point's run.

    Args:
        run: the study's folder below runs/.
        point: the point that needs the stage.
        method: the method of the point that has it.
    """
    stage = methods.METHODS[method].stage
    source = runs.stage_dir(f"{run}/{point.needs[method]}", stage)
    target = runs.stage_dir(f"{run}/{point.name}", stage)
    if target.exists():  # from an earlier attempt
        shutil.rmtree(target)
    shutil.copytree(source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # the file system has no hard links
        shutil.copy2(source, target)

"""Estimate the time and memory of a study with a smoke run of each kind of point.

A smoke run trains for a few of the point's steps and embeds a few batches of its test set, with one
thread. All smoke runs share one child process, which reports its peak memory.
"""

import itertools
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import pandas as pd
import psutil
import torch

from gaitlib.data.batches import inference_batches, training_batches
from gaitlib.evaluate import embed_batches
from gaitlib.model import build_losses
from gaitlib.system.device import choose_device
from gaitlib.system.processes import cores
from gaitlib.train.loop import Report, fit
from workbook import steps
from workbook.config import Experiment
from workbook.config.run_changes import digest
from workbook.study.methods import METHODS, absolute_macs, narrowed
from workbook.study.points import Point, load_point, state_of

#: Training steps of a smoke run: those that warm up, and those that are timed after them.
WARM_UP_STEPS, TIMED_STEPS = 2, 3
#: Test batches that a smoke run embeds.
TESTED_BATCHES = 3
#: Seconds that a point takes besides training and testing: kernel start, figures and files.
OVERHEAD_SECONDS = 25
#: Share of the free memory that all workers together may use.
MEMORY_SHARE = 0.8


class SmokeRun(NamedTuple):
    """What a smoke run measured.

    Attributes:
        step_seconds: seconds per training step.
        test_seconds: seconds to embed the whole test set.
        peak_bytes: the process's peak memory so far.
    """

    step_seconds: float
    test_seconds: float
    peak_bytes: int


def estimate(run: str, points: Sequence[Point], device: str = "auto") -> pd.DataFrame:
    """Return one row per point: point, state, seconds, memory (bytes), source.

    A point that is done has its own measured seconds (source ``measured``). Any other has the mean
    of finished points that cost the same (``measured for its method``), or else a smoke run's
    estimate (``smoke run``). A network that a budget cuts before it trains is measured as a
    uniformly slim one; if another point decides its width, at full width, an upper bound.

    Args:
        run: the study's folder below runs/.
        points: from `workbook.study.plan.expand`.
        device: as in `gaitlib.system.device.choose_device`.
    """
    trained = [_as_trained(point) for point in points]
    table = pd.DataFrame(
        {
            "point": [point.name for point in points],
            "state": [state_of(run, point) for point in points],
            "method": [point.method for point in points],
            "cost": [_cost_key(experiment) for experiment in trained],
            "steps": [experiment.trainer_cfg.total_iter for experiment in trained],
        }
    )
    done = table["state"] == "done"
    results = [load_point(run, p) if d else {} for p, d in zip(points, done, strict=True)]
    measured = pd.Series([found.get("seconds", np.nan) for found in results])
    alike = measured.groupby([table["method"], table["cost"], table["steps"]]).transform("mean")
    to_run = zip(table["cost"], trained, done, strict=True)
    smokes = smoke_runs({key: experiment for key, experiment, d in to_run if not d}, device)
    smoked = pd.DataFrame(
        [smokes.get(key, [np.nan] * 3) for key in table["cost"]], columns=SmokeRun._fields
    )
    steps_trained = table["steps"].where(table["method"] != "ptq", 0)
    expected = OVERHEAD_SECONDS + steps_trained * smoked["step_seconds"] + smoked["test_seconds"]
    table["seconds"] = measured.fillna(alike).fillna(expected)
    table["memory"] = smoked["peak_bytes"]
    sources = ["measured", "measured for its method"]
    table["source"] = np.select([done, alike.notna()], sources, "smoke run")
    return table[["point", "state", "seconds", "memory", "source"]]


def _as_trained(point: Point) -> Experiment:
    """Return a point's experiment; if its budget gives the MACs of a slim network, with that."""
    if not METHODS[point.method].is_cut_to_macs or point.budget is None or "hesso" in point.needs:
        return point.experiment
    return narrowed(point.experiment, absolute_macs(point.experiment, point.budget))


def _cost_key(experiment: Experiment) -> str:
    """Return a key that is equal for experiments whose steps and tests cost the same."""
    sections = {"model_cfg", "trainer_cfg", "evaluator_cfg", "data_cfg"}
    values = experiment.model_dump(mode="json", include=sections)
    del values["trainer_cfg"]["total_iter"]
    optimizer = getattr(experiment.compression, "implementation", None)
    return digest(values | {"optimizer": optimizer, "quantizes": experiment.quantizes})


def workers_for(memory: float, device: str = "auto") -> int:
    """Return how many points this machine can run at once.

    On a CPU: one per core, as far as the memory allows. On a GPU: one.

    Args:
        memory: bytes of the largest point; NaN or 0 if unknown.
        device: as in `gaitlib.system.device.choose_device`.
    """
    if choose_device(device).type != "cpu":
        return 1
    available = MEMORY_SHARE * psutil.virtual_memory().available
    fitting = int(available // memory) if memory > 0 else cores()
    return max(1, min(cores(), fitting))


def cost_words(cost: pd.DataFrame, workers: int | None, device: str = "auto") -> str:
    """Say what a study takes until all points are done.

    Args:
        cost: from `estimate`.
        workers: points at once; None as `workers_for` this machine.
        device: as in `gaitlib.system.device.choose_device`.
    """
    todo, memory = cost[cost["state"] != "done"], cost["memory"].max()
    words = f"{len(cost)} points, {len(cost) - len(todo)} done"
    if todo.empty:
        return words
    workers = workers or workers_for(memory, device)
    minutes = todo["seconds"].sum() / workers / 60
    return (
        f"{words}; the others about {minutes:.0f} min, {workers} at once, each with "
        f"{memory / 1e9:.1f} GB at most"
    )


def smoke_runs(experiments: dict[str, Experiment], device: str = "auto") -> dict[str, SmokeRun]:
    """Make a smoke run of each experiment, one after another in one child process."""
    if not experiments:
        return {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, torch.set_num_threads, (1,)) as pool:
        found = pool.map(_smoke_run, experiments.values(), itertools.repeat(device))
        return dict(zip(experiments, found, strict=True))


def _smoke_run(experiment: Experiment, device: str) -> SmokeRun:
    """Train a few steps, embed a few batches, and measure both in this process."""
    where, data = choose_device(device), steps.open_data(experiment)
    cfg, test = experiment.trainer_cfg, experiment.evaluator_cfg
    model = steps.build_network(experiment, where)
    graph = quantization = None
    if experiment.compression is not None:
        graph = steps.trace(experiment, model)
        quantization = steps.attach_quantizers(experiment, model, data, seed=0)
    optimizer = steps.build_optimizer(experiment, model, graph, quantization)
    iterations = range(WARM_UP_STEPS + TIMED_STEPS)
    batches = training_batches(data.train, cfg.sampler.build(), 0, iterations)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    history = fit(model, batches, steps.transform_of(cfg), losses, optimizer, report=Report(1))
    loader = inference_batches(data.test, test.sampler.build())
    began = time.monotonic()
    first_batches = itertools.islice(loader, TESTED_BATCHES)
    embedded, _ = embed_batches(model, first_batches, steps.transform_of(test), where)
    test_seconds = (time.monotonic() - began) * len(data.test) / len(embedded)
    step_seconds = history["step_ms"].iloc[WARM_UP_STEPS:].median() / 1e3
    return SmokeRun(step_seconds, test_seconds, peak_memory())


def peak_memory() -> int:
    """Return this process's peak memory in bytes."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux reports KiB

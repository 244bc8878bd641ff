"""What a study will cost: a smoke run of each kind of point, before any of them is trained.

A smoke run takes a few steps of the training that a point will do, and embeds a few batches of its
test set, with one thread. All run in one process beside this one, whose largest memory is read.
"""

import itertools
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import psutil

from gaitlib import steps
from gaitlib.config import Experiment
from gaitlib.config.run_changes import digest
from gaitlib.data.batches import inference_batches, training_batches
from gaitlib.evaluate import embed_batches
from gaitlib.model import build_losses
from gaitlib.study.points import Point, load_point, state_of
from gaitlib.system.device import choose_device
from gaitlib.system.processes import cores
from gaitlib.train.loop import fit

#: Steps of a smoke run: the first warm up, the others are timed. Batches of its test.
WARM, TIMED, TESTED = 2, 3, 3
#: Seconds that a point takes beside training and testing: its kernel's start, figures, files.
AROUND = 25
#: Share of the free memory that workers may plan with.
SHARE = 0.8


@dataclass(frozen=True)
class Smoke:
    """What a smoke run measured.

    Attributes:
        step: seconds of a training step.
        test: seconds to embed the whole test set.
        memory: the most bytes that the process has held so far.
    """

    step: float
    test: float
    memory: int


def estimate(run: str, points: Sequence[Point], device: str = "auto") -> pd.DataFrame:
    """Return a row a point: point, state, seconds, memory (bytes), source.

    A point that is done tells its own seconds (source ``measured``); others have those of a smoke
    run of their method (``smoke run``), or of done points of it (``measured of its method``). A
    network whose width another point decides is taken at its full width, which is the most.

    Args:
        run: of the study, below runs/.
        points: of `gaitlib.study.plan.expand`.
        device: as `gaitlib.system.device.choose_device`.
    """
    states = {point.name: state_of(run, point) for point in points}
    measured: dict[tuple[str, str, int], list[float]] = {}
    for point in points:
        if states[point.name] == "done":
            measured.setdefault(_alike(point), []).append(load_point(run, point)["seconds"])
    todo = {_kind(p.experiment): p.experiment for p in points if states[p.name] != "done"}
    smokes = smoke_runs(todo, device)
    rows = []
    for point in points:
        state, smoke = states[point.name], smokes.get(_kind(point.experiment))
        if state == "done":
            seconds, source = load_point(run, point)["seconds"], "measured"
        elif _alike(point) in measured:
            seconds, source = np.mean(measured[_alike(point)]), "measured of its method"
        else:
            trained = 0 if point.stage == "ptq" else point.experiment.trainer_cfg.total_iter
            seconds, source = AROUND + trained * smoke.step + smoke.test, "smoke run"
        memory = np.nan if smoke is None else smoke.memory
        rows.append((point.name, state, seconds, memory, source))
    return pd.DataFrame(rows, columns=["point", "state", "seconds", "memory", "source"])


def _alike(point: Point) -> tuple[str, str, int]:
    """Return what two points that take as long as each other agree in."""
    return point.method, _kind(point.experiment), point.experiment.trainer_cfg.total_iter


def _kind(experiment: Experiment) -> str:
    """Return what decides the cost of a step and of a test."""
    compression = experiment.compression
    return digest(
        {
            "network": experiment.model_cfg.model_dump(mode="json"),
            "training": experiment.trainer_cfg.model_dump(mode="json", exclude={"total_iter"}),
            "test": experiment.evaluator_cfg.model_dump(mode="json"),
            "data": experiment.data_cfg.model_dump(mode="json"),
            "optimizer": None if compression is None else compression.implementation,
            "quantizes": experiment.quantizes,
        }
    )


def workers_for(memory: float, device: str = "auto") -> int:
    """Return how many points this machine can run at once: one a core that has memory, or a GPU.

    Args:
        memory: bytes of the largest point; NaN or 0 if unknown.
        device: as `gaitlib.system.device.choose_device`.
    """
    if choose_device(device).type != "cpu":
        return 1
    room = int(SHARE * psutil.virtual_memory().available // memory) if memory > 0 else cores()
    return max(1, min(cores(), room))


def smoke_runs(experiments: dict[str, Experiment], device: str = "auto") -> dict[str, Smoke]:
    """Make a smoke run of each experiment, one after another in a process beside this one."""
    if not experiments:
        return {}
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # a new process reads it before it loads torch
    try:
        with ProcessPoolExecutor(1, context) as pool:
            found = pool.map(_smoke, experiments.values(), [device] * len(experiments))
            return dict(zip(experiments, found, strict=True))
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _smoke(experiment: Experiment, device: str) -> Smoke:
    where, data = choose_device(device), steps.open_data(experiment)
    cfg, test = experiment.trainer_cfg, experiment.evaluator_cfg
    model = steps.build_network(experiment, where)
    graph = quantization = None
    if experiment.compression is not None:
        graph = steps.trace(experiment, model)
        quantization = steps.attach_quantizers(experiment, model, data, seed=0)
    optimizer = steps.build_optimizer(experiment, model, graph, quantization)
    settings = cfg.sampler.model_dump(exclude={"type"})
    batches = training_batches(data.train, **settings, seed=0, start=0, stop=WARM + TIMED)
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    history = fit(model, batches, steps.transform_of(cfg), losses, optimizer, log_iter=1)
    sizes = {"batch_size": test.sampler.batch_size}
    sizes |= {"frames_all_limit": test.sampler.frames_all_limit}
    loader = inference_batches(data.test, **sizes)
    began = time.monotonic()
    some = itertools.islice(loader, TESTED)
    found, _ = embed_batches(model, some, steps.transform_of(test), where)
    test_seconds = (time.monotonic() - began) * len(data.test) / len(found)
    return Smoke(history["step_ms"].iloc[WARM:].median() / 1e3, test_seconds, peak_memory())


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB

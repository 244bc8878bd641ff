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

from gaitlib import stages
from gaitlib.config import Study
from gaitlib.config.changes import digest
from gaitlib.data.sampler import inference_batches, training_batches
from gaitlib.data.workers import cores
from gaitlib.device import choose_device
from gaitlib.evaluate import embed_batches
from gaitlib.model import build_losses
from gaitlib.study.points import Point, load_point, state_of
from gaitlib.train import fit

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


def estimate(study: str, points: Sequence[Point], device: str = "auto") -> pd.DataFrame:
    """Return a row a point: point, state, seconds, memory (bytes), source.

    A point that is done tells its own seconds (source ``measured``); others have those of a smoke
    run of their method (``smoke run``), or of done points of it (``measured of its method``). A
    network whose width another point decides is taken at its full width, which is the most.

    Args:
        study: folder below runs/.
        points: of `gaitlib.study.plan.expand`.
        device: as `gaitlib.device.choose_device`.
    """
    states = {point.name: state_of(study, point) for point in points}
    measured: dict[tuple[str, str, int], list[float]] = {}
    for point in points:
        if states[point.name] == "done":
            measured.setdefault(_alike(point), []).append(load_point(study, point)["seconds"])
    todo = {_kind(p.study): p.study for p in points if states[p.name] != "done"}
    smokes = smoke_runs(todo, device)
    rows = []
    for point in points:
        state, smoke = states[point.name], smokes.get(_kind(point.study))
        if state == "done":
            seconds, source = load_point(study, point)["seconds"], "measured"
        elif _alike(point) in measured:
            seconds, source = np.mean(measured[_alike(point)]), "measured of its method"
        else:
            trained = 0 if point.stage == "ptq" else point.study.trainer_cfg.total_iter
            seconds, source = AROUND + trained * smoke.step + smoke.test, "smoke run"
        memory = np.nan if smoke is None else smoke.memory
        rows.append((point.name, state, seconds, memory, source))
    return pd.DataFrame(rows, columns=["point", "state", "seconds", "memory", "source"])


def _alike(point: Point) -> tuple[str, str, int]:
    """Return what two points that take as long as each other agree in."""
    return point.method, _kind(point.study), point.study.trainer_cfg.total_iter


def _kind(study: Study) -> str:
    """Return what decides the cost of a step and of a test."""
    compression = study.compression
    return digest(
        {
            "network": study.model_cfg.model_dump(mode="json"),
            "training": study.trainer_cfg.model_dump(mode="json", exclude={"total_iter"}),
            "test": study.evaluator_cfg.model_dump(mode="json"),
            "data": study.data_cfg.model_dump(mode="json"),
            "optimizer": None if compression is None else compression.implementation,
            "quantizes": study.quantizes,
        }
    )


def workers_for(memory: float, device: str = "auto") -> int:
    """Return how many points this machine can run at once: one a core that has memory, or a GPU.

    Args:
        memory: bytes of the largest point; NaN or 0 if unknown.
        device: as `gaitlib.device.choose_device`.
    """
    if choose_device(device).type != "cpu":
        return 1
    room = int(SHARE * psutil.virtual_memory().available // memory) if memory > 0 else cores()
    return max(1, min(cores(), room))


def smoke_runs(studies: dict[str, Study], device: str = "auto") -> dict[str, Smoke]:
    """Make a smoke run of each study, one after another in a process beside this one."""
    if not studies:
        return {}
    context = multiprocessing.get_context("spawn")
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # a new process reads it before it loads torch
    try:
        with ProcessPoolExecutor(1, context) as pool:
            found = pool.map(_smoke, studies.values(), [device] * len(studies))
            return dict(zip(studies, found, strict=True))
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _smoke(study: Study, device: str) -> Smoke:
    where, data = choose_device(device), stages.open_data(study)
    cfg, test = study.trainer_cfg, study.evaluator_cfg
    model = stages.build_network(study, where)
    graph = quantization = None
    if study.compression is not None:
        graph = stages.trace(study, model)
        quantization = stages.attach_quantizers(study, model, data, seed=0)
    optimizer = stages.build_optimizer(study, model, graph, quantization)
    settings = cfg.sampler.model_dump(exclude={"type"})
    batches = training_batches(data.train, **settings, seed=0, start=0, stop=WARM + TIMED)
    losses = build_losses([term.model_dump() for term in study.loss_cfg])
    history = fit(model, batches, stages.transform_of(cfg), losses, optimizer, log_iter=1)
    sizes = {"batch_size": test.sampler.batch_size}
    sizes |= {"frames_all_limit": test.sampler.frames_all_limit}
    loader = inference_batches(data.test, **sizes)
    began = time.monotonic()
    some = itertools.islice(loader, TESTED)
    found, _ = embed_batches(model, some, stages.transform_of(test), where)
    test_seconds = (time.monotonic() - began) * len(data.test) / len(found)
    return Smoke(history["step_ms"].iloc[WARM:].median() / 1e3, test_seconds, peak_memory())


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak  # Linux counts in KiB

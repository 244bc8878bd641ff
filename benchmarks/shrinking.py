"""A whole training run whose network gets narrower, against a dense run of as many steps."""

import itertools

import torch

from benchmarks.networks import experiment_of, graph_of, network_of, sequences
from benchmarks.step import BATCH, ON_CUDA
from benchmarks.timing import Row, Setting, Work
from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.model import build_losses
from gaitlib.prune.hesso import build_hesso
from gaitlib.prune.hesso_settings import HessoSettings
from gaitlib.system.device import keep_freed_memory
from gaitlib.train.loop import Report, fit
from workbook.steps.dataset import transform_of

STEPS = 40
#: Channels leave from a tenth to a half of the steps, until a quarter of the MACs is left.
PRUNING = {
    "variant": "sgd",
    "lr": 0.01,
    "first_momentum": 0.9,
    "target_macs": 0.25,
    "start_pruning_step": STEPS // 10,
    "pruning_steps": 4 * STEPS // 10,
    "pruning_periods": 4,
}
DIVISIBLE = {"full": 16, "slim": 1}  # as the experiments of these networks have it


def run_of(setting: Setting, size: str, prunes: bool) -> Work:
    """Train from the beginning at each turn; a compressing run also traces its network."""
    keep_freed_memory(setting.device)
    experiment = experiment_of(size)
    p, k, t = ON_CUDA if setting.device == "cuda" else BATCH[size]
    losses = build_losses([term.model_dump() for term in experiment.loss_cfg])
    transform = transform_of(experiment_of("full").trainer_cfg)
    data = sequences(setting, cache=True)

    def run() -> None:
        model = network_of(size, setting)
        if prunes:
            cfg = HessoSettings.of(**PRUNING, group_divisible=DIVISIBLE[size])
            optimizer = build_hesso(graph_of(model), cfg)
        else:
            optimizer = torch.optim.SGD(
                model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4
            )
        batches = training_batches(
            data, TripletSampling(batch_size=(p, k), frames_num_fixed=t), 0, range(STEPS)
        )
        fit(
            model,
            itertools.islice(batches, STEPS),
            transform,
            losses,
            optimizer,
            report=Report(STEPS),
        )

    return Work(run, STEPS)


def _row(size: str, name: str, target: float) -> Row:
    return Row(
        f"compressing run to a quarter of the MACs, {STEPS} steps, {name}",
        "dense run of as many steps",
        (run_of, {"size": size, "prunes": True}),
        (run_of, {"size": size, "prunes": False}),
        "steps/s",
        target=target,
        at_most=True,
        turns=3,
    )


ROWS = {
    "full": _row("full", "full GaitBase, channels a multiple of 16", 0.6),
    "slim": _row("slim", "quickstart's GaitBase", 0.7),
}

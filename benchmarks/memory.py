"""Peak memory of a training process, with interpreter and libraries (about 450 MiB)."""

import torch

from benchmarks import step
from benchmarks.networks import experiment_of, labels_of, network_of
from benchmarks.timing import Row, Setting, Work
from gaitlib.model import build_losses


def full_step(setting: Setting, frames: int) -> Work:
    """Run the full GaitBase forward and backward on 4 clips of ``frames`` frames."""
    model = network_of("full", setting)
    clips = torch.rand(4, frames, 64, 44, device=setting.device)
    labels = labels_of(4, setting)
    losses = build_losses([term.model_dump() for term in experiment_of("full").loss_cfg])
    return Work(lambda: losses(model(clips), labels)[0].backward())


ROWS = {
    "quickstart": Row(
        "peak memory: training step of the quickstart, 64 clips of 3 frames",
        "",
        (step.ours, {"size": "slim"}),
        seconds=0,
        turns=1,
        memory=True,
    ),
    "full-16": Row(
        "peak memory: forward and backward of the full GaitBase, 16 frames",
        "",
        (full_step, {"frames": 4}),
        seconds=0,
        turns=1,
        memory=True,
    ),
    "full-32": Row(
        "the same, 32 frames (the difference is what 16 frames more take)",
        "",
        (full_step, {"frames": 8}),
        seconds=0,
        turns=1,
        memory=True,
    ),
}

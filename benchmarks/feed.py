"""Batches of 8 x 16 clips of 30 frames, randomly rotated and erased, ready on the device."""

from itertools import islice

import torch
from torch import Tensor

from benchmarks import step
from benchmarks.networks import experiment_of, sequences
from benchmarks.per_clip import loader
from benchmarks.timing import Row, Setting, Work
from gaitlib.data.batches import training_batches
from gaitlib.data.samplers import TripletSampling
from gaitlib.system.device import keep_freed_memory
from workbook.steps.dataset import transform_of

P, K, FRAMES = 8, 16, 30
BATCHES = 4  # per run


def ours(setting: Setting, cache: bool | str) -> Work:
    """Feed as `gaitlib.train.loop.fit` does."""
    keep_freed_memory(setting.device)
    cfg = experiment_of("full").trainer_cfg
    transform, generator = transform_of(cfg), torch.Generator()
    batches = iter(
        training_batches(
            sequences(setting, cache=cache),
            TripletSampling(batch_size=(P, K), batch_shuffle=True, frames_num_fixed=FRAMES),
            seed=0,
            iterations=range(10**6),
            pin_memory=setting.device == "cuda",
        )
    )

    def run() -> None:
        for batch in islice(batches, BATCHES):
            generator.manual_seed(batch.iteration)
            transform(batch.clips.to(setting.device, non_blocking=True), generator)

    return Work(run, BATCHES * P * K)


def per_clip(setting: Setting, cache: bool) -> Work:
    """Feed from a DataLoader of clips."""
    batches = iter(loader(setting, cache, P, K, FRAMES))

    def run() -> list[Tensor]:
        return [clips.to(setting.device) for clips, _ in islice(batches, BATCHES)][-1:]

    return Work(run, BATCHES * P * K)


def ours_frames(setting: Setting) -> Work:
    """Feed, counted in frames."""
    work = ours(setting, cache=False)
    return Work(work.run, work.amount * FRAMES)


ROWS = {
    "memory": Row(
        "clips of 8 x 16 x 30 frames, rotated and erased, data_cfg.cache: true",
        "numpy and cv2 per clip, DataLoader, from memory",
        (ours, {"cache": True}),
        (per_clip, {"cache": True}),
        "clips/s",
        target=5,
    ),
    "mapped": Row(
        "the same, data_cfg.cache: mapped",
        "the same from files",
        (ours, {"cache": "mapped"}),
        (per_clip, {"cache": False}),
        "clips/s",
        target=5,
    ),
    "files": Row(
        "the same, data_cfg.cache: false",
        "the same from files",
        (ours, {"cache": False}),
        (per_clip, {"cache": False}),
        "clips/s",
        target=5,
    ),
    "waits": Row(
        "frames fed, in the training process itself",
        "frames that a step of the full GaitBase takes",
        (ours_frames, {}),
        (step.network_alone, {"size": "full"}),
        "frames/s",
        target=1,
    ),
}

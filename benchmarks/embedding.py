"""Embedding a test set whose sequences have many lengths."""

import torch

from benchmarks.networks import experiment_of, network_of
from benchmarks.timing import Row, Setting, Work
from gaitlib.data.batches import inference_batches
from gaitlib.data.casia_b import SilhouetteDataset, load_split
from gaitlib.data.samplers import InferenceSampling
from gaitlib.evaluate import embed_batches
from gaitlib.system.device import keep_freed_memory
from walkers.walker_dataset import make_walkers
from workbook.steps.dataset import transform_of


def _test_set(setting: Setting, frames: tuple[int, int]) -> SilhouetteDataset:
    root = make_walkers(
        setting.folder / f"test-{frames[0]}-{frames[1]}",
        subjects=2,
        train=1,
        frames=frames,
        views=("000", "036", "072", "108"),
    )
    return load_split(root, root / "partition.json", "TEST_SET", cache=True)


def ours(setting: Setting, size: str, frames: tuple[int, int]) -> Work:
    """Embed as `workbook.steps.evaluate_network` does."""
    keep_freed_memory(setting.device)
    experiment, model, data = (
        experiment_of(size),
        network_of(size, setting),
        _test_set(setting, frames),
    )
    cfg = experiment.evaluator_cfg
    transform = transform_of(cfg)

    def run() -> None:
        batches = inference_batches(data, InferenceSampling(batch_size=cfg.sampler.batch_size))
        embed_batches(model, batches, transform, setting.device)

    return Work(run, len(data))


def one_by_one(setting: Setting, size: str, frames: tuple[int, int]) -> Work:
    """Embed each sequence by itself."""
    model, data = network_of(size, setting).eval(), _test_set(setting, frames)

    def run() -> None:
        with torch.inference_mode():
            for i in range(len(data)):
                clip = torch.from_numpy(data.sequence(i))[None, ..., 10:-10].to(setting.device)
                model.embed(clip.float() / 255).cpu()

    return Work(run, len(data))


def _row(what: str, size: str, frames: tuple[int, int], seconds: float) -> Row:
    arguments = {"size": size, "frames": frames}
    return Row(
        f"embedding a test set, {what}",
        "one sequence at a time",
        (ours, arguments),
        (one_by_one, arguments),
        "sequences/s",
        target=1.5,
        seconds=seconds,
    )


ROWS = {
    "slim": _row("quickstart's GaitBase, 16 to 20 frames", "slim", (16, 20), 10),
    "long": _row("quickstart's GaitBase, 40 to 120 frames", "slim", (40, 120), 10),
}

"""Open the data set of an experiment; generate it first if it is the embedded one."""

import contextlib
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from gaitlib.data.alignment import SIZE
from gaitlib.data.batches import training_batches
from gaitlib.data.casia_b import DataSplit, load_split, missing_sequences, stored_size
from gaitlib.data.partition import SPLITS, read_partition
from gaitlib.data.samplers import TripletSampling
from gaitlib.data.transforms import Transform, build_transform
from gaitlib.model import FRAME
from gaitlib.system import distributed
from walkers.walker_dataset import make_walkers
from workbook.config import ConfigError, Experiment
from workbook.config.data_cfg import WalkerCfg
from workbook.runs import data_folder, locate

log = logging.getLogger(__name__)

#: The first iteration of calibration batches; training never gets this far.
CALIBRATION_ITERATION = 2**31


def open_data(
    experiment: Experiment, progress: bool = False, *, test_alone: bool = False
) -> DataSplit:
    """Read, check and count the sequences of an experiment, or open their memory-mapped file.

    Args:
        experiment: its data_cfg names the data set.
        progress: draw a bar while walkers are generated.
        test_alone: open TEST_SET alone; TRAIN_SET may be empty.

    Raises:
        ConfigError: if the network's classes or the sampler do not fit the training subjects.
        OSError: if the disk is too full for ``data_cfg.cache: mapped``.
    """
    name, root, partition = _dataset_paths(experiment, progress)
    in_use = experiment.data_cfg.file_in_use
    mapped = experiment.data_cfg.cache == "mapped"
    cache = data_folder() / "mapped" if mapped else experiment.data_cfg.cache
    with distributed.one_first() if mapped else contextlib.nullcontext():
        train, test = (
            None
            if test_alone and split == "TRAIN_SET"
            else load_split(root, partition, split, cache=cache, file_in_use=in_use)
            for split in SPLITS
        )
    least = experiment.trainer_cfg.sampler.frames_num_min
    for half, dataset in (("to train on", train), ("to test", test)):
        if dataset is not None and distributed.is_main():
            log.info("%s: %s", half, count_sequences(dataset.table, least))
    if train is not None:
        try:
            experiment.check_subjects(len(train.subjects))
        except ValueError as error:
            raise ConfigError(str(error)) from error
    lists = {k: values for k, values in read_partition(partition).items() if k not in SPLITS}
    data = DataSplit(name, train, test, lists)
    _check_frames(experiment, data)
    return data


def count_sequences(table: pd.DataFrame, least: int) -> str:
    """Say how many sequences there are, how many are missing, and how many are short.

    Args:
        table: of `SilhouetteDataset`.
        least: ``frames_num_min``; a shorter sequence gives a clip all the same.
    """
    types, views = table["type"].unique(), table["view"].unique()
    missing = len(missing_sequences(table, types, views))
    short = int((table["frames"] < least).sum())
    return (
        f"{len(table)} sequences of {table['subject'].nunique()} subjects; {missing} are missing "
        f"(of {len(types)} types and {len(views)} views each), {short} are shorter than "
        f"frames_num_min {least}"
    )


def _dataset_paths(experiment: Experiment, progress: bool) -> tuple[str, Path, Path]:
    """Return a data set's name, folder and partition file; generate walkers that are missing.

    Relative paths start at the working folder, or else at the project's folder.
    """
    cfg, walker = experiment.data_cfg, experiment.data_cfg.walker
    if walker is None:
        return cfg.dataset_name, locate(cfg.dataset_root), locate(cfg.dataset_partition)
    name = f"walker-{walker.subjects}x{drawing_of(walker)}"
    default_root = data_folder() / f"{name}-train{walker.train}"
    root = locate(cfg.dataset_root) if cfg.dataset_root else default_root
    with distributed.one_first():
        make_walkers(root, **walker.model_dump(), progress=progress)
    return name, root, locate(cfg.dataset_partition or str(root / "partition.json"))


def drawing_of(walker: WalkerCfg) -> str:
    """Return how walkers are drawn, for a folder's name."""
    fewest, most = walker.frames
    frames = f"{fewest}-{most}" + (f"by{walker.frame_step}" if walker.frame_step > 1 else "")
    return f"{frames}-seed{walker.seed}-noise{walker.noise:g}"


def input_size(experiment: Experiment) -> tuple[int, int]:
    """Return the rows and columns of the network's input: of a frame after the test's transform.

    The stored size is ``data_cfg.frame_size``, else that of the sequences on disk, else 64 x 64.
    """
    blank = torch.zeros(1, 1, *_stored_size(experiment), dtype=torch.uint8)
    rows, columns = transform_of(experiment.evaluator_cfg)(blank).shape[-2:]
    return rows, columns


def network_arguments(experiment: Experiment) -> dict[str, Any]:
    """Return `gaitlib.model.build_model`'s arguments of an experiment's network (JSON-ready)."""
    arguments, size = experiment.model_cfg.build_arguments(), input_size(experiment)
    return arguments | ({} if size == FRAME else {"frame_size": list(size)})


def _stored_size(experiment: Experiment) -> tuple[int, int]:
    cfg = experiment.data_cfg
    if cfg.frame_size is not None or cfg.walker is not None:
        return cfg.frame_size or (SIZE, SIZE)
    return stored_size(locate(cfg.dataset_root), cfg.file_in_use) or (SIZE, SIZE)


def _check_frames(experiment: Experiment, data: DataSplit) -> None:
    """Refuse sequences that have another size than the network is costed for.

    Raises:
        ConfigError: the message gives the size to write.
    """
    expected = _stored_size(experiment)
    sizes = [list(part.frame_size) for part in (data.train, data.test) if part is not None]
    if len(sizes) == 2 and sizes[0] != sizes[1]:
        raise ConfigError(
            f"the sequences of {data.name} have frames of {sizes[0]} rows and columns to train on, "
            f"and of {sizes[1]} to test: make one half again with `gaitlib pretreat --size "
            f"{sizes[0][0]}`"
        )
    if sizes[0] != list(expected):
        raise ConfigError(
            f"the sequences of {data.name} have frames of {sizes[0]} rows and columns, and "
            f"{list(expected)} are expected: write data_cfg.frame_size: {sizes[0]}"
        )


def calibration_clips(
    experiment: Experiment, data: DataSplit, *, seed: int, count: int = 8
) -> list[Tensor]:
    """Return batches of training clips as the network's input, float32 ``(N, T, H, W)``.

    They are sampled as in training but without augmentation, at iterations that training never
    reaches.

    Args:
        experiment: its training sampler and its test transform are used.
        data: its training half is used.
        seed: of the sampling.
        count: number of batches.
    """
    sampler = experiment.trainer_cfg.sampler
    sampling = TripletSampling(
        batch_size=sampler.batch_size, frames_num_fixed=sampler.frames_num_fixed
    )
    transform = transform_of(experiment.evaluator_cfg)
    iterations = range(CALIBRATION_ITERATION, CALIBRATION_ITERATION + count)
    batches = training_batches(data.train, sampling, seed, iterations)
    return [transform(batch.clips) for batch in batches]


def transform_of(section: Any) -> Transform:
    """Build the transform of a trainer_cfg or evaluator_cfg."""
    return build_transform([transform.model_dump() for transform in section.transform])

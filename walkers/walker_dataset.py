"""The data set: walkers in the CASIA-B-pkl layout, with the same bytes on every machine.

``<dst>/walkers.json`` records the arguments and the generator's version. If a folder was made with
the same arguments and version, only missing files are drawn. If they differ, the folder is refused.
The number of processes does not change the bytes.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gaitlib.system.processes import cores
from walkers.child_processes import draw_in_processes
from walkers.manifest import data_spec, prepare_folder
from walkers.scene import TYPES, VIEWS
from walkers.walk_files import sequence_path, write_walk

logger = logging.getLogger(__name__)

WALKS_PER_PROCESS = 20  # with fewer, starting another process costs more than it saves


def make_walkers(
    dst: str | os.PathLike,
    *,
    subjects: int = 34,
    train: int = 24,
    types: Sequence[str] = TYPES,
    views: Sequence[str] = VIEWS,
    frames: tuple[int, int] = (16, 20),
    seed: int = 0,
    noise: float = 1.0,
    workers: int | None = None,
    raw: bool = False,
    progress: bool = False,
) -> Path:
    """Draw a walker data set, or what is missing of it, and return its root.

    ``<dst>/<subject>/<type>/<view>/<view>.pkl`` holds a pickled uint8 array ``(frames, 64, 64)``:
    the raw frames as ``gaitlib.data.pretreat.align_frame`` aligns them. ``<dst>/partition.json``
    lists the subjects of TRAIN_SET and TEST_SET.

    Args:
        dst: root of the data set; created if it is missing.
        subjects: number of people, numbered from "001".
        train: the first ``train`` subjects are in TRAIN_SET, the others in TEST_SET.
        types: sequences per subject, a selection of ``TYPES``.
        views: cameras, a selection of ``VIEWS``.
        frames: smallest and largest number of frames per sequence.
        seed: another seed gives other people.
        noise: strength of the camera noise; 0 gives clean silhouettes.
        workers: number of processes; None takes all cores that this process may use.
        raw: write the raw frames instead, as ``<subject>-<type>-<view>-<frame>.png``, grey, 320
            pixels wide and 240 high, numbered from 001.
        progress: show a progress bar.

    Returns:
        ``dst`` as an absolute path.

    Raises:
        ValueError: the arguments make no data set, or ``dst`` holds something else.
        WorkerError: a process failed or was killed; a second call completes the data set.
    """
    root = Path(dst).resolve()
    spec = data_spec(subjects, train, types, views, frames, seed, noise, raw)
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: give at least 1, or None for all cores")
    prepare_folder(root, spec)
    walks = _missing_walks(root, spec)
    if walks:
        workers = min(workers or cores(), max(1, len(walks) // WALKS_PER_PROCESS))
        logger.info("drawing %d walks with %d processes into %s", len(walks), workers, root)
        with tqdm(total=len(walks), unit="walk", disable=not progress) as bar:
            if workers == 1:
                for walk in walks:
                    write_walk(root, spec, *walk)
                    bar.update()
            else:
                draw_in_processes(root, spec, walks, workers, bar.update)
    return root


def _missing_walks(root: Path, spec: dict) -> list[tuple[int, str, list[str]]]:
    """Return (subject, type, missing views) of every walk that is not complete."""
    walks = []
    for subject in range(1, spec["subjects"] + 1):
        for type in spec["types"]:
            views = [
                v
                for v in spec["views"]
                if not sequence_path(root, spec["raw"], subject, type, v).exists()
            ]
            if views:
                walks.append((subject, type, views))
    return walks

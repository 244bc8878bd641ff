"""The data set: walkers in the CASIA-B-pkl layout, made once, whole, and alike on every machine.

``<dst>/walkers.json`` records the arguments and the generator's version. A tree made with the same
ones is completed where files are missing and otherwise left alone; one made with others is refused.
The bytes don't depend on how the work is shared out to processes.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gaitlib.system.processes import cores
from walkers.files import sequence_path, write_walk
from walkers.manifest import claim, data_spec
from walkers.processes import draw_in_processes
from walkers.scene import TYPES, VIEWS

logger = logging.getLogger(__name__)

WORTH_A_PROCESS = 20  # walks below which starting another process costs more than it saves


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
    """Write (or finish, or recognise) a walker data set and return its root.

    ``<dst>/<subject>/<type>/<view>/<view>.pkl`` holds a pickled uint8 array ``(frames, 64, 64)``,
    the raw frames through ``pretreat.align_frame``; ``<dst>/partition.json`` names TRAIN_SET and
    TEST_SET.

    Args:
        dst: root of the data set; created if need be.
        subjects: number of people, "001" and up.
        train: how many of them, from the first, are in TRAIN_SET; the rest are in TEST_SET.
        types: sequences of each person, a selection of ``TYPES``.
        views: cameras, a selection of ``VIEWS``.
        frames: least and greatest number of frames of a sequence.
        seed: another seed gives other people.
        noise: strength of the camera noise; 0 gives clean silhouettes.
        workers: processes; None takes all cores this process may use.
        raw: write the raw frames instead, ``<subject>-<type>-<view>-<frame>.png``, 320 x 240 grey,
            frames from 001.
        progress: show a progress bar.

    Returns:
        The root, ``dst`` as an absolute path.

    Raises:
        ValueError: arguments that make no data set, or a ``dst`` that holds something else.
        WorkerError: a process failed or was killed; a second call completes the data set.
    """
    root = Path(dst).resolve()
    spec = data_spec(subjects, train, types, views, frames, seed, noise, raw)
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: give at least 1, or None for all cores")
    claim(root, spec)
    units = _missing(root, spec)
    if units:
        workers = min(workers or cores(), max(1, len(units) // WORTH_A_PROCESS))
        logger.info("drawing %d walks with %d processes into %s", len(units), workers, root)
        with tqdm(total=len(units), unit="walk", disable=not progress) as bar:
            if workers == 1:
                for unit in units:
                    write_walk(root, spec, *unit)
                    bar.update()
            else:
                draw_in_processes(root, spec, units, workers, bar.update)
    return root


def _missing(root: Path, spec: dict) -> list[tuple[int, str, list[str]]]:
    """Return (subject, type, views not yet written) for every walk that is not complete."""
    units = []
    for subject in range(1, spec["subjects"] + 1):
        for type in spec["types"]:
            views = [
                v
                for v in spec["views"]
                if not sequence_path(root, spec["raw"], subject, type, v).exists()
            ]
            if views:
                units.append((subject, type, views))
    return units

"""The data set: walkers in a public layout, with the same bytes on every machine.

``<dst>/walkers.json`` records the arguments and the generator's version. If a folder was made with
the same arguments and version, only missing files are drawn. If they differ, the folder is refused.
The number of processes does not change the bytes.
"""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from gaitlib.system.errors import UserError
from gaitlib.system.processes import cores
from walkers.child_processes import draw_in_processes
from walkers.layouts import DEFAULT, Place
from walkers.manifest import all_places, data_spec, prepare_folder
from walkers.styles import DEFAULT as STYLE
from walkers.walk_files import sequence_path, write_walk

logger = logging.getLogger(__name__)

WALKS_PER_PROCESS = 20  # with fewer, starting another process costs more than it saves


def make_walkers(
    dst: str | os.PathLike,
    *,
    layout: str = DEFAULT,
    subjects: int | None = None,
    train: int | None = None,
    types: Sequence[str] | None = None,
    views: Sequence[str] | None = None,
    frames: tuple[int, int] = (16, 20),
    frame_step: int = 1,
    style: str = STYLE,
    seed: int = 0,
    noise: float = 1.0,
    workers: int | None = None,
    raw: bool = False,
    progress: bool = False,
) -> Path:
    """Draw a walker data set, or what is missing of it, and return its root.

    ``<dst>/<subject>/<type>/<view>/<view>.pkl`` holds a pickled uint8 array ``(frames, 64, 64)``:
    the raw frames as ``gaitlib.data.alignment.align_frame`` aligns them. ``<dst>/partition.json``
    lists the subjects of TRAIN_SET and TEST_SET. Another layout has its own ids, types, views,
    files and frame size (`walkers.layouts`).

    Args:
        dst: root of the data set; created if it is missing.
        layout: a name of ``LAYOUTS``.
        subjects: number of people; None takes the layout's (CASIA-B's: 34).
        train: the first ``train`` subjects are in TRAIN_SET, the others in TEST_SET; None takes the
            layout's (CASIA-B's: 24).
        types: sequences per subject, a selection of the layout's; None takes all.
        views: cameras, a selection of the layout's; None takes all.
        frames: smallest and largest number of frames per sequence.
        frame_step: a sequence has one of so many frames of the camera's 25 a second: with 24
            frames, 1 is one second in the middle of the path, 4 is CASIA-B's whole pass.
        style: a name of ``walkers.styles.STYLES``: how people, clothes and cameras are drawn.
        seed: another seed gives other people.
        noise: strength of the camera noise; 0 gives clean silhouettes.
        workers: number of processes; None takes all cores that this process may use.
        raw: CASIA-B only: write the raw frames instead, as
            ``<subject>-<type>-<view>-<frame>.png``, grey, 320 pixels wide and 240 high, numbered
            from 001.
        progress: show a progress bar.

    Returns:
        ``dst`` as an absolute path.

    Raises:
        UserError: the arguments make no data set, or ``dst`` holds something else.
        WorkerError: a process failed or was killed; a second call completes the data set.
    """
    root = Path(dst).resolve()
    spec = data_spec(
        layout, subjects, train, types, views, frames, frame_step, style, seed, noise, raw
    )
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: give at least 1, or None for all cores")
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


def _missing_walks(root: Path, spec: dict) -> list[tuple[int, str, list[Place]]]:
    """Return (person, walk, places of its missing sequences) of every walk that is not complete."""
    walks: dict[tuple[int, str], list[Place]] = {}
    for person, place in all_places(spec):
        if not sequence_path(root, spec, place).exists():
            walks.setdefault((person, place.walk), []).append(place)
    return [(person, walk, places) for (person, walk), places in walks.items()]

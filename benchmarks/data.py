"""Making data: silhouettes from raw frames, and walkers from nothing."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from benchmarks.timing import Row, Setting, Work
from gaitlib.data.sequence_file import write_sequence
from gaitlib.system.processes import cores
from walkers.scene import TYPES, VIEWS
from walkers.walker_dataset import make_walkers
from workbook.pretreat.pretreat import pretreat_tree


def raw(setting: Setting, subjects: int) -> tuple[Path, int]:
    """Return a folder of raw frames and their number; one subject is drawn, others link to it."""
    root = setting.folder / f"raw-{subjects}"
    drawn = make_walkers(
        setting.folder / "raw-one", subjects=2, train=1, frames=(50, 50), raw=True,
        types=("nm-01", "bg-01"), views=("000", "054", "090"),
    )  # fmt: skip
    root.mkdir(exist_ok=True)
    for i in range(2 if setting.quick else subjects):
        with contextlib.suppress(FileExistsError):  # the other side made it
            os.symlink(drawn / "001", root / f"{i + 1:03d}")
    return root, sum(1 for _ in root.glob("*/*/*/*.png"))


def _into_a_new_folder(setting: Setting, make: Callable[[Path], object]) -> Callable[[], None]:
    def run() -> None:
        folder = Path(tempfile.mkdtemp(dir=setting.folder))
        make(folder)
        shutil.rmtree(folder)

    return run


def pretreat(setting: Setting, workers: int, subjects: int) -> Work:
    """Pretreat a tree, counted in frames per process."""
    src, frames = raw(setting, subjects)
    run = _into_a_new_folder(setting, lambda dst: pretreat_tree(src, dst, workers=workers))
    return Work(run, frames / workers)


def plain_loop(setting: Setting, subjects: int) -> Work:
    """Crop, scale and centre each frame with cv2 and numpy, as OpenGait's script does."""
    src, frames = raw(setting, subjects)

    def align(path: Path) -> np.ndarray | None:
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if image.sum() <= 10_000:
            return None
        rows = image.sum(axis=1)
        top, bottom = (rows != 0).argmax(), (rows != 0).cumsum().argmax()
        image = image[top : bottom + 1]
        width = int(64 * image.shape[1] / image.shape[0])
        image = cv2.resize(image, (width, 64), interpolation=cv2.INTER_CUBIC)
        mass = image.sum(axis=0).cumsum()
        middle = int((mass > image.sum() / 2).argmax())
        left = middle - 32
        if left <= 0 or left + 64 >= width:
            image = np.pad(image, ((0, 0), (32, 32)))
            left += 32
        return image[:, left : left + 64]

    def make(dst: Path) -> None:
        for view in sorted(src.glob("*/*/*")):
            aligned = [a for p in sorted(view.glob("*.png")) if (a := align(p)) is not None]
            write_sequence(dst / view.relative_to(src) / f"{view.name}.pkl", np.stack(aligned))

    return Work(_into_a_new_folder(setting, make), frames)


def walker_files(setting: Setting) -> Work:
    """Draw a data set with as many processes as there are cores, counted in frames per core."""
    subjects, count = 4, 60

    def make(dst: Path) -> None:
        make_walkers(
            dst / "set", subjects=subjects, train=2, frames=(count, count), workers=cores()
        )

    amount = subjects * len(TYPES) * len(VIEWS) * count
    return Work(_into_a_new_folder(setting, make), amount / cores())


ROWS = {
    "pretreat-scales": Row(
        "pretreatment, frames per second of each process, one process per core",
        "one process",
        (pretreat, {"workers": cores(), "subjects": 100}),
        (pretreat, {"workers": 1, "subjects": 100}),
        "frames/s",
        target=0.85,
        turns=3,
    ),
    "pretreat-loop": Row(
        "pretreatment in one process, from PNG to pickle",
        "plain cv2 loop",
        (pretreat, {"workers": 1, "subjects": 10}),
        (plain_loop, {"subjects": 10}),
        "frames/s",
        target=1,
    ),
    "walkers": Row(
        "walkers drawn into files, frames per second of each core",
        "",
        (walker_files, {}),
        unit="frames/s",
        target=1000,
    ),
}

"""The feed of the alternatives: one clip at a time in numpy and cv2, as most projects do it."""

import pickle
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import DataLoader, Dataset

from benchmarks.networks import sequences
from benchmarks.timing import Setting

PROB = 0.3  # of rotating a clip, and of erasing


class PerClip(Dataset):
    """Clips of ``frames`` frames, float32 in 0..1, randomly rotated and erased."""

    def __init__(self, paths: list[str], labels: np.ndarray, frames: int, cache: bool) -> None:
        self.paths, self.labels, self.frames = paths, labels, frames
        self.cached = [self.read(path) for path in paths] if cache else None
        self.rng = np.random.default_rng(0)

    @staticmethod
    def read(path: str) -> np.ndarray:
        """Unpickle a sequence."""
        return pickle.loads(Path(path).read_bytes())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        rng = self.rng
        sequence = self.read(self.paths[index]) if self.cached is None else self.cached[index]
        chosen = rng.choice(len(sequence), self.frames, replace=len(sequence) < self.frames)
        clip = sequence[chosen, :, 10:-10].astype(np.float32) / 255.0  # (T, H, W)
        if rng.random() < PROB:
            clip = rotate(clip, rng.uniform(-10, 10))
        if rng.random() < PROB:
            erase(clip, rng)
        return clip, int(self.labels[index])


def rotate(clip: np.ndarray, degrees: float) -> np.ndarray:
    """Rotate every frame."""
    h, w = clip.shape[1:]
    matrix = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), degrees, 1)
    return np.stack([cv2.warpAffine(frame, matrix, (w, h)) for frame in clip])


def erase(clip: np.ndarray, rng: np.random.Generator) -> None:
    """Set a random box to zero."""
    h, w = clip.shape[1:]
    while True:
        area, ratio = rng.uniform(0.05, 0.2) * h * w, rng.uniform(0.3, 1 / 0.3)
        tall, wide = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if tall < h and wide < w:
            top, left = rng.integers(h - tall + 1), rng.integers(w - wide + 1)
            clip[:, top : top + tall, left : left + wide] = 0
            return


class PKBatches:
    """Endless batches of P subjects with K clips each."""

    def __init__(self, labels: np.ndarray, p: int, k: int) -> None:
        self.by_subject = [np.flatnonzero(labels == s) for s in np.unique(labels)]
        self.p, self.k = p, k

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng(0)
        for _ in count():
            subjects = rng.choice(len(self.by_subject), self.p, replace=False)
            yield [int(i) for s in subjects for i in rng.choice(self.by_subject[s], self.k)]


def loader(setting: Setting, cache: bool, p: int, k: int, frames: int) -> DataLoader:
    """Return an endless loader of batches of P x K clips."""
    dataset = sequences(setting, cache=False)
    clips = PerClip(list(dataset.table["path"]), dataset.labels, frames, cache)
    return DataLoader(clips, batch_sampler=PKBatches(dataset.labels, p, k))

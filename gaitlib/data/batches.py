"""Batches of clips: sequences drawn by ``order``, frames by ``frames``, loaded by a DataLoader.

Iteration i of a run depends on (seed, i) alone: resuming needs no saved random state, and the
number of loading workers has no effect.
"""

import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing.connection import wait
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from gaitlib.data.frames import choose_frames
from gaitlib.data.samplers import ClipSeed, InferenceSampler, TripletSampler
from gaitlib.data.sequence_file import SequenceError
from gaitlib.system.errors import UserError
from gaitlib.system.processes import LoaderError, describe_exit

__all__ = [
    "Batch",
    "InferenceSampler",
    "LoaderError",
    "TripletSampler",
    "choose_frames",
    "inference_batches",
    "training_batches",
]

logger = logging.getLogger(__name__)


class Sequences(Protocol):
    """Sequences to draw batches from, such as :class:`~gaitlib.data.casia_b.SilhouetteDataset`."""

    labels: np.ndarray

    def __len__(self) -> int: ...

    def sequence(self, index: int) -> np.ndarray:
        """Return ``(T, H, W)`` uint8."""
        ...


class Batch(NamedTuple):
    """Clips of one iteration.

    Attributes:
        clips: uint8, ``(N, T, H, W)``; or ``(1, sum of T, H, W)``, one clip after another, with
            their lengths in ``seqL``.
        labels: ``(N,)`` int64.
        seqL: ``(N,)`` int64, the number of frames of each clip; None where all have T.
        indices: ``(N,)`` int64, positions in the data set.
        iteration: its number; 0 at inference.
    """

    clips: Tensor
    labels: Tensor
    seqL: Tensor | None
    indices: Tensor
    iteration: int


def training_batches(
    dataset: Sequences,
    labels: Sequence[int] | np.ndarray | None = None,
    *,
    seed: int,
    start: int,
    stop: int,
    batch_size: tuple[int, int] = (8, 16),
    batch_shuffle: bool = False,
    sample_type: str = "fixed_unordered",
    frames_num_fixed: int = 30,
    frames_num_min: int = 25,
    frames_num_max: int = 50,
    frames_skip_num: int = 0,
    frames_all_limit: int = -1,
    num_workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> "DataLoader[Batch]":
    """Return a loader of the batches of iterations ``start`` to ``stop - 1``.

    ``fixed_*`` clips are stacked. ``unfixed_*`` clips have a length each, as in OpenGait; they and
    ``all_*`` clips are concatenated along frames. If a subject has fewer than K
    sequences, they are drawn with replacement, which is logged once.

    Args:
        dataset: the sequences.
        labels: the subject of each, integers; those of ``dataset`` by default.
        seed: see :class:`TripletSampler`, like the following.
        start: first iteration.
        stop: one past the last.
        batch_size: (P subjects, K clips of each).
        batch_shuffle: shuffle the clips of a batch.
        sample_type: see :func:`choose_frames`, like the following.
        frames_num_fixed: frames of a clip.
        frames_num_min: fewest frames of a clip.
        frames_num_max: most frames of a clip.
        frames_skip_num: frames dropped from an ordered window.
        frames_all_limit: most frames of an ``all_*`` clip, or -1.
        num_workers: loading processes; 0 loads in this one. The batches do not depend on it.
        pin_memory: put batches in memory that a GPU can read.
        rank: the number of this process.
        world_size: the number of processes.

    Raises:
        UserError: the settings do not fit each other or the data, see :class:`TripletSampler`.
        SequenceError: while iterating, a sequence can no longer be read.
        LoaderError: while iterating, a loading process died.
    """
    labels = dataset.labels if labels is None else labels
    sampler = TripletSampler(labels, batch_size, seed, start, stop, batch_shuffle, rank, world_size)
    if rank == 0:
        _warn_about_repeated_sequences(sampler)
    clips = _Clips(
        dataset,
        labels,
        sample_type,
        frames_num_fixed=frames_num_fixed,
        frames_num_min=frames_num_min,
        frames_num_max=frames_num_max,
        frames_skip_num=frames_skip_num,
        frames_all_limit=frames_all_limit,
    )
    return _loader(clips, sampler, num_workers, pin_memory)


def inference_batches(
    dataset: Sequences,
    *,
    batch_size: int = 4,
    sample_type: str = "all_ordered",
    frames_num_fixed: int = 30,
    frames_skip_num: int = 0,
    frames_all_limit: int = 720,
    seed: int = 0,
    num_workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> "DataLoader[Batch]":
    """Return a loader of every sequence once, in order; ``all_*`` clips are concatenated.

    With ``world_size`` processes each one loads its share of the batches, see
    :class:`InferenceSampler`; the share may be empty.

    Args:
        dataset: the sequences.
        batch_size: sequences per batch; the last batch may hold fewer.
        sample_type: ``all_*`` or ``fixed_*``, see :func:`choose_frames`, like the following.
        frames_num_fixed: frames of a ``fixed_*`` clip.
        frames_skip_num: frames dropped from a ``fixed_ordered`` window.
        frames_all_limit: most frames of an ``all_*`` clip, or -1.
        seed: for ``fixed_*``.
        num_workers: loading processes; 0 loads in this one.
        pin_memory: put batches in memory that a GPU can read.
        rank: the number of this process.
        world_size: the number of processes.

    Raises:
        UserError: the settings do not fit each other.
        SequenceError: while iterating, a sequence can no longer be read.
        LoaderError: while iterating, a loading process died.
    """
    if sample_type.startswith("unfixed"):
        raise UserError(f"sample_type {sample_type!r} is for training; test with all_* or fixed_*")
    sampler = InferenceSampler(len(dataset), batch_size, seed, rank, world_size)
    clips = _Clips(
        dataset,
        dataset.labels,
        sample_type,
        frames_num_fixed=frames_num_fixed,
        frames_skip_num=frames_skip_num,
        frames_all_limit=frames_all_limit,
    )
    return _loader(clips, sampler, num_workers, pin_memory)


def _warn_about_repeated_sequences(sampler: TripletSampler) -> None:
    counts = [len(sequences) for sequences in sampler.by_subject]
    k = sampler.num_clips
    num_subjects = sum(count < k for count in counts)
    if num_subjects:
        logger.warning(
            "%d of %d training subjects have fewer than K = %d sequences (the fewest: %d): their "
            "clips are drawn with replacement, so a batch may hold a sequence twice; lower K, "
            "trainer_cfg.sampler.batch_size[1], to avoid it",
            num_subjects, len(counts), k, min(counts),
        )  # fmt: skip


class _Clips(Dataset[Batch]):
    """Cut the clips of a batch, which is a sampler's list of (index, clip seed)."""

    def __init__(
        self,
        sequences: Sequences,
        labels: Sequence[int] | np.ndarray,
        sample_type: str,
        **settings: int,
    ) -> None:
        self.sequences, self.labels = sequences, torch.as_tensor(np.asarray(labels, np.int64))
        if len(self.labels) != len(sequences):
            raise UserError(f"{len(self.labels)} labels for {len(sequences)} sequences")
        self.choose = partial(choose_frames, sample_type=sample_type, **settings)
        self.choose(1, np.random.default_rng(0))  # refuse wrong settings now, not in a worker
        self.concatenated = not sample_type.startswith("fixed")

    def __getitem__(self, batch: list[tuple[int, ClipSeed]]) -> Batch:
        iteration = batch[0][1][1]
        clips, lengths = [], []
        for n, (index, (seed, _, position)) in enumerate(batch):
            sequence = self.sequences.sequence(index)
            # position + 1: to numpy, [seed, iteration, 0] and [seed, iteration] are the same seed
            rng = np.random.default_rng([seed, iteration, position + 1])
            frames = self.choose(len(sequence), rng)
            lengths.append(len(frames))
            if self.concatenated:
                clips.append(sequence[frames])
                continue
            if not n:
                clips = np.empty((len(batch), len(frames), *sequence.shape[1:]), np.uint8)
            # frames are in range; the mode that checks this would copy through a buffer
            np.take(sequence, frames, axis=0, out=clips[n], mode="clip")
        if self.concatenated:
            clips = np.concatenate(clips)[None]
        indices = torch.tensor([index for index, _ in batch])
        return Batch(
            torch.from_numpy(clips),  # (1, sum T, H, W) or (N, T, H, W)
            self.labels[indices],
            torch.tensor(lengths) if self.concatenated else None,
            indices,
            iteration,
        )


class _Loader(DataLoader):
    """A DataLoader that reports a dead worker in one line."""

    def __iter__(self) -> Iterator[Batch]:
        before = signal.getsignal(signal.SIGCHLD)
        batches = super().__iter__()
        if before is not None and threading.current_thread() is threading.main_thread():
            # torch's handler could raise at any moment, for example while this process writes a
            # checkpoint. Without it, next() finds a dead worker within five seconds.
            signal.signal(signal.SIGCHLD, before)
        while True:
            try:
                batch = next(batches)
            except StopIteration:
                return
            except Exception as error:
                workers = getattr(batches, "_workers", [])  # none if this process loads
                clearer = self._one_line_error(error, workers)
                if workers:
                    batches._shutdown_workers()  # now: the traceback would keep them alive
                if clearer is error:
                    raise
                raise clearer from None
            yield batch

    def _one_line_error(self, error: Exception, workers: list) -> Exception:
        """Return a one-line error for one raised while loading; other errors unchanged."""
        if isinstance(error, SequenceError):  # a worker sends its whole traceback as the message
            return SequenceError(str(error).rpartition("SequenceError: ")[2].strip())
        if not workers or not isinstance(error, RuntimeError | OSError | EOFError):
            return error
        ended = wait([worker.sentinel for worker in workers], timeout=1)
        if not ended:
            return error
        dead = next(worker for worker in workers if worker.sentinel in ended)
        dead.join()  # a process closes its files shortly before it ends
        return LoaderError(
            f"a process that loads batches died {describe_exit(dead.exitcode)}. "
            f"data_cfg.num_workers is {self.num_workers}: lower it (0 loads in the main process). "
            "trainer_cfg.restore_hint: latest continues training from the last checkpoint"
        )


def _loader(
    clips: _Clips,
    sampler: Sampler[list[tuple[int, ClipSeed]]],
    num_workers: int,
    pin_memory: bool,
) -> "DataLoader[Batch]":
    return _Loader(
        clips,
        batch_size=None,  # the sampler's items are whole batches
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=pin_memory,
        collate_fn=_return_unchanged,
        generator=torch.Generator().manual_seed(0),  # otherwise it draws from the global one
        worker_init_fn=_ignore_stop_signals,
    )


def _return_unchanged(batch: Batch) -> Batch:
    return batch


def _ignore_stop_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGINT, which reach the whole process group; the main process saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

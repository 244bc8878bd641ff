"""Batches of clips: sequences drawn by ``samplers``, frames by ``frames``, loaded by a DataLoader.

Iteration i of a run depends on (seed, i) alone: resuming needs no saved random state, and the
number of loading workers has no effect.
"""

import logging
import signal
import threading
from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gaitlib.data.frames import choose_frames
from gaitlib.data.samplers import Draws, InferenceSampling, TripletSampler, TripletSampling
from gaitlib.data.sequence_file import SequenceError
from gaitlib.system.processes import WorkerError, describe_exit

logger = logging.getLogger(__name__)


class Sequences(Protocol):
    """Sequences to draw batches from, such as :class:`~gaitlib.data.casia_b.SilhouetteDataset`."""

    labels: np.ndarray  # ``(len,)`` int64

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
    sampling: TripletSampling,
    seed: int,
    iterations: range,
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> "DataLoader[Batch]":
    """Return a loader of the batches of some iterations.

    ``fixed_*`` clips are stacked. ``unfixed_*`` clips have a length each, as in OpenGait; they and
    ``all_*`` clips are concatenated along frames. If a subject has fewer than K
    sequences, they are drawn with replacement, which is logged once.

    Args:
        dataset: the sequences.
        sampling: how sequences and frames are drawn.
        seed: of the whole run.
        iterations: their numbers.
        num_workers: loading processes; 0 loads in this one. The batches do not depend on it.
        pin_memory: put batches in memory that a GPU can read.
        rank: the number of this process, see :class:`TripletSampler`.
        world_size: the number of processes.

    Raises:
        UserError: a batch that ``world_size`` does not divide.
        SequenceError: while iterating, a sequence can no longer be read.
        WorkerError: while iterating, a loading process died.
    """
    sampler = TripletSampler(dataset.labels, sampling, seed, iterations, rank, world_size)
    counts, k = [len(sequences) for sequences in sampler.by_subject], sampling.batch_size[1]
    if rank == 0 and (few := sum(count < k for count in counts)):
        logger.warning(
            "%d of %d training subjects have fewer than K = %d sequences (the fewest: %d): their "
            "clips are drawn with replacement, so a batch may hold a sequence twice; lower K, "
            "trainer_cfg.sampler.batch_size[1], to avoid it",
            few, len(counts), k, min(counts),
        )  # fmt: skip
    return _Loader(_Clips(dataset, sampling), sampler, num_workers, pin_memory)


def inference_batches(
    dataset: Sequences,
    sampling: InferenceSampling = InferenceSampling(),  # noqa: B008 (frozen)
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> "DataLoader[Batch]":
    """Return a loader of every sequence once, in order, concatenated; the last batch may be small.

    With ``world_size`` processes each one takes every ``world_size``-th of the batches that a
    single process would have. A process may have no batch.

    Args:
        dataset: the sequences.
        sampling: how many sequences make a batch, and the most frames of each.
        num_workers: loading processes; 0 loads in this one.
        pin_memory: put batches in memory that a GPU can read.
        rank: the number of this process.
        world_size: the number of processes.

    Raises:
        SequenceError: while iterating, a sequence can no longer be read.
        WorkerError: while iterating, a loading process died.
    """
    size, count = sampling.batch_size, len(dataset)
    batches = [
        [(index, (0, 0, index)) for index in range(first, min(first + size, count))]
        for first in range(rank * size, count, world_size * size)
    ]
    return _Loader(_Clips(dataset, sampling), batches, num_workers, pin_memory)


class _Clips(Dataset[Batch]):
    """Cut the clips of a batch."""

    def __init__(self, sequences: Sequences, sampling: TripletSampling | InferenceSampling) -> None:
        self.sequences, self.sampling = sequences, sampling
        self.labels = torch.as_tensor(np.asarray(sequences.labels, np.int64))

    def __getitem__(self, batch: Draws) -> Batch:
        clips = []
        for index, (seed, iteration, position) in batch:
            sequence = self.sequences.sequence(index)
            # position + 1: to numpy, [seed, iteration, 0] and [seed, iteration] are the same seed
            rng = np.random.default_rng([seed, iteration, position + 1])
            clips.append(sequence[choose_frames(len(sequence), self.sampling, rng)])
        lengths = None
        if self.sampling.sample_type.startswith("fixed"):
            clips = np.stack(clips)  # (N, T, H, W)
        else:
            lengths = torch.tensor([len(clip) for clip in clips])
            clips = np.concatenate(clips)[None]  # (1, sum T, H, W)
        indices = torch.tensor([index for index, _ in batch])
        return Batch(
            torch.from_numpy(clips), self.labels[indices], lengths, indices, batch[0][1][1]
        )


class _Loader(DataLoader):
    """A DataLoader that reports a dead worker in one line."""

    def __init__(
        self, clips: _Clips, batches: Iterable[Draws], num_workers: int, pin_memory: bool
    ) -> None:
        super().__init__(
            clips,
            batch_size=None,  # the sampler's items are whole batches
            sampler=batches,
            num_workers=num_workers,
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(0),  # otherwise it draws from the global one
            worker_init_fn=_ignore_stop_signals,
        )

    def __iter__(self) -> Iterator[Batch]:
        before = signal.getsignal(signal.SIGCHLD)
        batches = super().__iter__()
        if before is not None and threading.current_thread() is threading.main_thread():
            # torch's handler could raise at any moment, for example while this process writes a
            # checkpoint. Without it, next() finds a dead worker within five seconds.
            signal.signal(signal.SIGCHLD, before)
        try:
            yield from batches
        except Exception as error:
            workers, ended = getattr(batches, "_workers", []), []  # none if this process loads
            if workers and isinstance(error, RuntimeError | OSError | EOFError):
                ended = wait([worker.sentinel for worker in workers], timeout=1)
            dead = [worker for worker in workers if worker.sentinel in ended]
            for worker in dead:
                worker.join()  # a process closes its files shortly before it ends
            if workers:
                batches._shutdown_workers()  # now: the traceback would keep them alive
            if dead:
                raise WorkerError(
                    f"a process that loads batches died {describe_exit(dead[0].exitcode)}. "
                    f"data_cfg.num_workers is {self.num_workers}: lower it (0 loads in the main "
                    "process). trainer_cfg.restore_hint: latest continues training from the last "
                    "checkpoint"
                ) from None
            if isinstance(error, SequenceError):  # a worker's message is its whole traceback
                raise SequenceError(str(error).rpartition("SequenceError: ")[2].strip()) from None
            raise


def _ignore_stop_signals(worker: int) -> None:
    """Ignore SIGTERM and SIGINT, which reach the whole process group; the main process saves."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)

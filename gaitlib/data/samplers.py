"""Choose which sequences make a batch, and in which order.

The names and the rules are OpenGait's (``data/sampler.py``). The randomness is not: the batch of
iteration i depends on (seed, i) alone. So a resumed run continues exactly, and several processes
share one batch without communicating.
"""

from collections.abc import Hashable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from gaitlib.system.errors import UserError

ClipSeed = tuple[int, int, int]  # seed, iteration, position in the batch


class TripletSampler(Sampler[list[tuple[int, ClipSeed]]]):
    """Draw P subjects, and K sequences of each, for every iteration from ``start`` to ``stop``.

    The subjects of a batch are distinct. The K sequences of a subject are distinct too, unless it
    has fewer than K: then all K are drawn with replacement (OpenGait's ``random_sample_list``).

    With ``world_size`` processes, each takes every ``world_size``-th clip of the batch that one
    process would draw, with the same frames.

    Args:
        labels: the subject of each sequence.
        batch_size: (P, K).
        seed: of the whole run.
        start: first iteration.
        stop: one past the last.
        batch_shuffle: shuffle the clips; otherwise the clips of a subject are adjacent.
        rank: the number of this process.
        world_size: the number of processes.

    Yields:
        The batch of one iteration: pairs (sequence index, clip seed).

    Raises:
        UserError: no sequences, fewer than P subjects, or a batch that ``world_size`` does not
            divide.
    """

    def __init__(
        self,
        labels: Sequence[Hashable] | np.ndarray,
        batch_size: tuple[int, int],
        seed: int,
        start: int,
        stop: int,
        batch_shuffle: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_subjects, self.num_clips = batch_size
        subjects, subject_of = np.unique(np.asarray(labels), return_inverse=True)
        if min(batch_size) < 1:
            raise UserError(
                f"trainer_cfg.sampler.batch_size is {list(batch_size)}: a batch needs 1 subject "
                "and 1 clip or more"
            )
        if not len(subjects):
            raise UserError("the training set holds no sequence: there is nothing to draw from")
        if len(subjects) < self.num_subjects:
            raise UserError(
                f"trainer_cfg.sampler.batch_size {list(batch_size)} asks for {self.num_subjects} "
                f"subjects per batch, and the training set has {len(subjects)}: write "
                f"[{len(subjects)}, {self.num_clips}], or add subjects"
            )
        _check_rank(rank, world_size)
        clips = self.num_subjects * self.num_clips
        if clips % world_size:
            divisors = [str(n) for n in range(1, clips + 1) if clips % n == 0]
            raise UserError(
                f"trainer_cfg.sampler.batch_size {list(batch_size)} makes {clips} clips, which do "
                f"not split evenly over {world_size} processes: start one of "
                f"{', '.join(divisors)} processes, or choose a batch_size [P, K] whose P x K is a "
                f"multiple of {world_size}"
            )
        if seed < 0 or not 0 <= start <= stop:
            raise UserError(f"seed {seed} and iterations {start} to {stop} must not be negative")
        self.by_subject = [np.flatnonzero(subject_of == s) for s in range(len(subjects))]
        self.seed, self.start, self.stop = seed, start, stop
        self.batch_shuffle, self.rank, self.world_size = batch_shuffle, rank, world_size

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[list[tuple[int, ClipSeed]]]:
        for iteration in range(self.start, self.stop):
            batch = self._draw(iteration)
            yield [
                (int(batch[position]), (self.seed, iteration, position))
                for position in range(self.rank, len(batch), self.world_size)
            ]

    def _draw(self, iteration: int) -> np.ndarray:
        """Draw the sequence indices of the whole batch, ``(P * K,)``."""
        rng = np.random.default_rng([self.seed, iteration])
        subjects = rng.choice(len(self.by_subject), self.num_subjects, replace=False)
        k = self.num_clips
        clips = []
        for subject in subjects:
            sequences = self.by_subject[subject]
            clips.append(rng.choice(sequences, k, replace=len(sequences) < k))
        batch = np.concatenate(clips)
        return rng.permutation(batch) if self.batch_shuffle else batch


class InferenceSampler(Sampler[list[tuple[int, ClipSeed]]]):
    """Yield every sequence exactly once, in order; the last batch may be smaller.

    With ``world_size`` processes, each takes every ``world_size``-th of the batches that a single
    process would have; together they yield every sequence once. A process may have no batch.

    Args:
        num_sequences: the length of the data set.
        batch_size: sequences per batch.
        seed: for sample types that choose frames at random. A clip depends only on the seed and on
            the index of its sequence.
        rank: the number of this process.
        world_size: the number of processes.
    """

    def __init__(
        self,
        num_sequences: int,
        batch_size: int = 4,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: a batch needs 1 sequence or more")
        _check_rank(rank, world_size)
        self.num_sequences, self.batch_size, self.seed = num_sequences, batch_size, seed
        self.firsts = range(rank * batch_size, num_sequences, world_size * batch_size)

    def __len__(self) -> int:
        return len(self.firsts)

    def __iter__(self) -> Iterator[list[tuple[int, ClipSeed]]]:
        for first in self.firsts:
            last = min(first + self.batch_size, self.num_sequences)
            yield [(index, (self.seed, 0, index)) for index in range(first, last)]


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is none of the {world_size} processes: they count from 0")

"""Choose which sequences make a batch, and in which order.

The names and the rules are OpenGait's (``data/sampler.py``). The randomness is not: the batch of
iteration i depends on (seed, i) alone. So a resumed run continues exactly, and several processes
share one batch without communicating.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np
from torch.utils.data import Sampler

from gaitlib.system.errors import UserError

SampleType = Literal[
    "fixed_unordered",
    "fixed_ordered",
    "fixed_allordered",
    "unfixed_unordered",
    "unfixed_allordered",
    "unfixed_ordered",
    "all_unordered",
    "all_ordered",
]
ClipSeed = tuple[int, int, int]  # seed, iteration, position in the batch
Draws = list[tuple[int, ClipSeed]]  # one batch: sequence indices, and the seeds of their frames


@dataclass(frozen=True)
class TripletSampling:
    """How a training batch is drawn: P subjects, K clips each.

    - ``batch_size``: P and K.
    - ``batch_shuffle``: mix the clips of a batch.
    - ``sample_type``: ``fixed_*`` takes ``frames_num_fixed`` frames of each sequence, ``unfixed_*``
      a number between ``frames_num_min`` and ``frames_num_max``, ``all_*`` all. ``unordered`` draws
      frames anywhere, ``ordered`` from a stretch of the sequence, ``allordered`` from all of it in
      order.
    - ``frames_num_fixed``: frames of a clip.
    - ``frames_num_min``, ``frames_num_max``: bounds of the frames of an ``unfixed_*`` clip.
      Sequences below the minimum are counted as short.
    - ``frames_skip_num``: how many frames of the stretch of an ``*_ordered`` clip are dropped.
    - ``frames_all_limit``: the most frames of an ``all_*`` clip; -1: no limit.

    Raises:
        UserError: an unknown ``sample_type``, or a number out of range.
    """

    batch_size: tuple[int, int] = (8, 16)
    batch_shuffle: bool = False
    sample_type: SampleType = "fixed_unordered"
    frames_num_fixed: int = 30
    frames_num_min: int = 25
    frames_num_max: int = 50
    frames_skip_num: int = 0
    frames_all_limit: int = 720

    def __post_init__(self) -> None:
        if min(self.batch_size) < 2:
            raise UserError(
                f"batch_size is {list(self.batch_size)}: a triplet needs 2 subjects and 2 clips "
                "of one subject; write at least [2, 2]"
            )
        if self.sample_type not in get_args(SampleType):
            choices = ", ".join(get_args(SampleType))
            raise UserError(f"unknown sample_type {self.sample_type!r}; choose from {choices}")
        least = {"frames_num_fixed": 1, "frames_num_min": 1, "frames_skip_num": 0}
        for key, bound in (least | {"frames_num_max": self.frames_num_min}).items():
            if getattr(self, key) < bound:
                raise UserError(f"{key} is {getattr(self, key)}: write {bound} or more")

    def check_subjects(self, count: int) -> None:
        """Raise `UserError` if P exceeds the number of training subjects."""
        if self.batch_size[0] > count:
            raise UserError(
                f"trainer_cfg.sampler.batch_size[0] is {self.batch_size[0]}, but the training set "
                f"has {count} subjects: write at most {count}"
            )


@dataclass(frozen=True)
class InferenceSampling:
    """How test sequences are read: all of each, or its first ``frames_all_limit`` frames.

    - ``batch_size``: sequences at a time.
    - ``frames_all_limit``: the most frames of a sequence; -1: no limit.
    """

    batch_size: int = 4
    frames_all_limit: int = 720
    sample_type: ClassVar[SampleType] = "all_ordered"


class TripletSampler(Sampler[Draws]):
    """Draw P subjects, and K sequences of each, for every iteration.

    The subjects of a batch are distinct. The K sequences of a subject are distinct too, unless it
    has fewer than K: then all K are drawn with replacement (OpenGait's ``random_sample_list``).

    With ``world_size`` processes, each takes every ``world_size``-th clip of the batch that one
    process would draw, with the same frames.

    Args:
        labels: the subject of each sequence.
        sampling: gives P, K, and whether the clips of a subject stay adjacent.
        seed: of the whole run.
        iterations: to draw batches for.
        rank: the number of this process.
        world_size: the number of processes.

    Yields:
        The batch of one iteration.

    Raises:
        UserError: fewer than P subjects, or a batch that ``world_size`` does not divide.
    """

    def __init__(
        self,
        labels: Sequence[Hashable] | np.ndarray,
        sampling: TripletSampling,
        seed: int,
        iterations: range,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        subjects, subject_of = np.unique(np.asarray(labels), return_inverse=True)
        sampling.check_subjects(len(subjects))
        clips = sampling.batch_size[0] * sampling.batch_size[1]
        if clips % world_size:
            divisors = [str(n) for n in range(1, clips + 1) if clips % n == 0]
            raise UserError(
                f"trainer_cfg.sampler.batch_size {list(sampling.batch_size)} makes {clips} clips, "
                f"which do not split evenly over {world_size} processes: start one of "
                f"{', '.join(divisors)} processes, or choose a batch_size [P, K] whose P x K is a "
                f"multiple of {world_size}"
            )
        self.by_subject = [np.flatnonzero(subject_of == s) for s in range(len(subjects))]
        self.sampling, self.seed, self.iterations = sampling, seed, iterations
        self.rank, self.world_size = rank, world_size

    def __len__(self) -> int:
        return len(self.iterations)

    def __iter__(self) -> Iterator[Draws]:
        for iteration in self.iterations:
            batch = self._draw(iteration)
            yield [
                (int(batch[position]), (self.seed, iteration, position))
                for position in range(self.rank, len(batch), self.world_size)
            ]

    def _draw(self, iteration: int) -> np.ndarray:
        """Draw the sequence indices of the whole batch, ``(P * K,)``."""
        rng = np.random.default_rng([self.seed, iteration])
        p, k = self.sampling.batch_size
        clips = []
        for subject in rng.choice(len(self.by_subject), p, replace=False):
            sequences = self.by_subject[subject]
            clips.append(rng.choice(sequences, k, replace=len(sequences) < k))
        batch = np.concatenate(clips)
        return rng.permutation(batch) if self.sampling.batch_shuffle else batch

"""Choose which frames of a sequence make a clip.

The names and the rules are OpenGait's (``data/collate_fn.py``).
"""

import numpy as np

from gaitlib.system.errors import UserError

SAMPLE_TYPES = (
    "all_ordered",
    "all_unordered",
    "fixed_allordered",
    "fixed_ordered",
    "fixed_unordered",
    "unfixed_allordered",
    "unfixed_ordered",
    "unfixed_unordered",
)


def choose_frames(
    num_frames: int,
    rng: np.random.Generator,
    *,
    sample_type: str = "fixed_unordered",
    frames_num_fixed: int = 30,
    frames_num_min: int = 25,
    frames_num_max: int = 50,
    frames_skip_num: int = 0,
    frames_all_limit: int = -1,
) -> np.ndarray:
    """Choose the frames of a clip from a sequence of ``num_frames``.

    - ``all_*``: every frame in order, cut after ``frames_all_limit`` unless that is -1.
    - ``fixed_unordered``: ``frames_num_fixed`` frames at random, each at most once. From a shorter
      sequence they are drawn with replacement.
    - ``fixed_allordered``: the same frames, in the order of the sequence. (OpenGait takes the name
      and leaves them in random order, which makes no difference to a maximum over frames.)
    - ``fixed_ordered``: a window of ``frames_num_fixed + frames_skip_num`` consecutive frames at a
      random place; ``frames_skip_num`` of them are dropped at random. A sequence shorter than the
      window is repeated first.
    - ``unfixed_*``: the same, with a length drawn from ``frames_num_min`` to ``frames_num_max``.

    Args:
        num_frames: the length of the sequence, at least 1.
        rng: draws the frames.
        sample_type: one of ``SAMPLE_TYPES``.
        frames_num_fixed: frames of a clip.
        frames_num_min: fewest frames of a clip.
        frames_num_max: most frames of a clip.
        frames_skip_num: frames dropped from an ordered window.
        frames_all_limit: most frames of an ``all_*`` clip, or -1.

    Returns:
        Indices into the sequence, int64.

    Raises:
        UserError: the type is unknown, or a number is out of range.
    """
    if sample_type not in SAMPLE_TYPES:
        raise UserError(f"unknown sample_type {sample_type!r}; choose from {list(SAMPLE_TYPES)}")
    if num_frames < 1:
        raise UserError(f"a sequence of {num_frames} frames gives no clip")
    how_many, order = sample_type.split("_")
    if how_many == "all":
        if frames_all_limit < 1 and frames_all_limit != -1:
            raise UserError(
                f"frames_all_limit is {frames_all_limit}: give 1 or more, or -1 for all"
            )
        return np.arange(num_frames)[: None if frames_all_limit == -1 else frames_all_limit]
    count = frames_num_fixed
    if how_many == "unfixed":
        if not 1 <= frames_num_min <= frames_num_max:
            lengths = f"{frames_num_min} to {frames_num_max}"
            raise UserError(
                f"frames_num_min to frames_num_max is {lengths}: write two lengths of 1 or more, "
                "the smaller first"
            )
        count = int(rng.integers(frames_num_min, frames_num_max + 1))
    if count < 1 or frames_skip_num < 0:
        raise UserError(f"a clip of {count} frames with {frames_skip_num} skipped cannot be drawn")
    if order != "ordered":
        drawn = rng.choice(num_frames, count, replace=num_frames < count)
        return np.sort(drawn) if order == "allordered" else drawn
    window = count + frames_skip_num
    repeated = num_frames * -(-window // num_frames)  # enough whole repetitions, at least one
    start = rng.integers(repeated - window + 1)
    kept = start + np.sort(rng.choice(window, count, replace=False))
    return kept % num_frames

"""Choose which frames of a sequence make a clip.

The names and the rules are OpenGait's (``data/collate_fn.py``).
"""

import numpy as np

from gaitlib.data.samplers import InferenceSampling, TripletSampling


def choose_frames(
    num_frames: int, sampling: TripletSampling | InferenceSampling, rng: np.random.Generator
) -> np.ndarray:
    """Choose the frames of a clip from a sequence of ``num_frames``, by its ``sample_type``.

    - ``all_*``: every frame in order, cut after ``frames_all_limit`` unless that is -1.
    - ``fixed_unordered``: ``frames_num_fixed`` frames at random, each at most once. From a shorter
      sequence they are drawn with replacement.
    - ``fixed_allordered``: the same frames, in the order of the sequence. (OpenGait takes the name
      and leaves them in random order, which makes no difference to a maximum over frames.)
    - ``fixed_ordered``: a window of ``frames_num_fixed + frames_skip_num`` consecutive frames at a
      random place; ``frames_skip_num`` of them are dropped at random. A sequence shorter than the
      window is repeated first.
    - ``unfixed_*``: the same, with a length drawn from ``frames_num_min`` to ``frames_num_max``.

    Returns:
        Indices into the sequence, int64.
    """
    how_many, order = sampling.sample_type.split("_")
    if how_many == "all":
        limit = sampling.frames_all_limit
        return np.arange(num_frames)[: None if limit == -1 else limit]
    count = sampling.frames_num_fixed
    if how_many == "unfixed":
        count = int(rng.integers(sampling.frames_num_min, sampling.frames_num_max + 1))
    if order != "ordered":
        drawn = rng.choice(num_frames, count, replace=num_frames < count)
        return np.sort(drawn) if order == "allordered" else drawn
    window = count + sampling.frames_skip_num
    repeated = num_frames * -(-window // num_frames)  # enough whole repetitions, at least one
    start = rng.integers(repeated - window + 1)
    kept = start + np.sort(rng.choice(window, count, replace=False))
    return kept % num_frames

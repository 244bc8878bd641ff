"""The walker: a procedural data set in CASIA-B's layout, for people without its licence.

Identity lives in body proportions and in motion; view, clothing and bags are nuisances. It is a
stand-in that exercises every line of code that reads, trains on and plots CASIA-B, and no claim
about real people.
"""

from walkers.dataset import make_walkers
from walkers.scene import TYPES, VIEWS, sequence_frames

__all__ = ["TYPES", "VIEWS", "make_walkers", "sequence_frames"]

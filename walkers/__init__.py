"""Walkers: a procedural data set in CASIA-B's layout, for people without its licence.

A walker's identity lives in body proportions and in motion. View, clothing and bags are nuisances.
The data set exercises every line of code that reads, trains on and plots CASIA-B. It says nothing
about real people.
"""

from walkers.scene import TYPES, VIEWS, sequence_frames
from walkers.walker_dataset import make_walkers

__all__ = ["TYPES", "VIEWS", "make_walkers", "sequence_frames"]

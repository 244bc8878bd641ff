"""Many runs from one file: a grid of points. Each point is trained once, here or on a cluster.

`gaitlib.study.runner` needs the extras ``study`` (Dask distributed) and ``notebooks`` (papermill);
the other modules do not.
"""

from gaitlib.study.methods import METHODS
from gaitlib.study.plan import StudyPlan, expand, read_plan
from gaitlib.study.points import Point, read_point, state_of
from gaitlib.study.tables import TIMINGS, layer_table, point_table, read_tables, write_tables
from gaitlib.study.train_point import run_point

__all__ = [
    "METHODS",
    "TIMINGS",
    "Point",
    "StudyPlan",
    "expand",
    "layer_table",
    "point_table",
    "read_plan",
    "read_point",
    "read_tables",
    "run_point",
    "state_of",
    "write_tables",
]

"""Many runs from one file: a grid of points, each trained once, on one machine or a cluster.

`gaitlib.study.runner` needs the extra ``study`` (Dask distributed); the rest does not.
"""

from gaitlib.study.plan import StudyPlan, expand, read_plan
from gaitlib.study.points import METHODS, Point, run_point, state_of
from gaitlib.study.table import TIMINGS, point_table, write_table

__all__ = [
    "METHODS",
    "TIMINGS",
    "Point",
    "StudyPlan",
    "expand",
    "point_table",
    "read_plan",
    "run_point",
    "state_of",
    "write_table",
]

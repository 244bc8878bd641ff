"""Many runs from one file: a grid of points. Each point is trained once, here or on a cluster.

`workbook.study.runner` needs the extras ``study`` (Dask distributed) and ``notebooks`` (papermill);
the other modules do not.
"""

from workbook.study.methods import METHODS
from workbook.study.plan import StudyPlan, expand, read_plan
from workbook.study.points import read_point
from workbook.study.tables import layer_table, point_table, read_tables, write_tables
from workbook.study.train_point import run_point

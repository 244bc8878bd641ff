"""Run a study's points on Dask workers: the only door to Dask (https://distributed.dask.org).

Dask distributes the points, watches the workers and restarts those that die; a worker executes a
point's notebooks. Results and progress are read from the point's folder, so workers on other
machines must see the same ``runs/``.
"""

import contextlib
import logging
import multiprocessing
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from pathlib import Path
from traceback import format_exception

import dask
from distributed import CancelledError, Client, Future, KilledWorker, LocalCluster, get_worker, wait
from distributed.utils import get_mp_context

from gaitlib.system.files import write_atomically
from workbook import runs, steps
from workbook.config import ConfigError
from workbook.study.estimate import cost_words, estimate, workers_for
from workbook.study.point_notebooks import PointError, PointKilledError, execute_point
from workbook.study.points import FAILED, Point, point_dir, state_of
from workbook.study.progress import training_words
from workbook.system.live_line import live_line

log = logging.getLogger(__name__)

LOOK = 1  # seconds between two checks of the workers
#: Seconds without any worker on this machine until new ones start, and for a cluster to close.
LOST, CLOSE = 120, 60


@dataclass
class Outcome:
    """What one call of `run_study` did, as names of points.

    Attributes:
        kept: had their results before the call.
        done: got their results in this call.
        failed: failed, or need a point that failed; each has a failed.txt.
    """

    kept: list[str] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def run_study(
    run: str,
    points: Sequence[Point],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> Outcome:
    """Run the points that have no results yet, or results of other settings.

    A failed point writes its traceback to ``runs/<study>/<point>/failed.txt``; the points that do
    not need it still run. A point whose process is killed gets a second try, which continues from
    its checkpoint. On this machine each point computes with one thread. A line is logged when a
    point starts, ends or fails; between them `live_line` says how far the running ones are, and how
    many minutes are left.

    Args:
        run: of the study, below runs/.
        points: from `workbook.study.plan.expand`.
        scheduler: address of a Dask scheduler, ``tcp://host:port``, or the file ``*.json`` that
            holds it, which is waited for; its workers have one thread each and see this ``runs/``.
            When a worker dies, the scheduler first retries its task as often as its own
            ``distributed.scheduler.allowed-failures`` says.
        workers: number of points at once without a scheduler. Default: one per core, as far as
            the memory that a smoke run measures allows; one on a GPU.
        device: as `gaitlib.system.device.choose_device`, for each worker.

    Raises:
        ConfigError: if the requests contradict each other, or a data set does not fit its study.
        OSError: if there is no scheduler at the address.
    """
    if workers is not None and scheduler:
        raise ConfigError("--workers is for this machine: a scheduler brings its own workers")
    outcome = Outcome(kept=[point.name for point in points if state_of(run, point) == "done"])
    todo = {point.name: point for point in points if point.name not in outcome.kept}
    log.info(f"{run}: {len(points)} points, {len(outcome.kept)} done, {len(todo)} to run")
    if not todo:
        return outcome
    # opened once here, so that walkers are made now and not by several workers
    experiments = [point.experiment for point in todo.values()]
    for experiment in {repr((e.data_cfg, e.protocol)): e for e in experiments}.values():
        steps.check_test_set(experiment, steps.open_data(experiment))
    if workers is None and not scheduler:
        cost = estimate(run, points, device)
        workers = workers_for(cost["memory"].max(), device)
        log.info(cost_words(cost, workers))
    # Dask tells of every process and socket
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with _connect(scheduler, workers) as client:
        log.info(f"dashboard: {client.dashboard_link}")
        batch = _Batch(run, todo, outcome, client, workers, device)
        with live_line(batch.progress):
            batch.run()
    return outcome


@contextlib.contextmanager
def _connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """Yield a client of the given cluster, or of a local one that is closed afterwards."""
    if scheduler:
        key = "scheduler_file" if scheduler.endswith(".json") else "address"
        with Client(**{key: scheduler}) as client:
            yield client
        return
    settings = {
        "distributed.worker.daemon": False,  # a point starts processes
        "distributed.scheduler.allowed-failures": 0,  # `_Batch` says why
    }
    environment = {"GAITLIB_WORKSPACE": str(runs.workspace()), "OMP_NUM_THREADS": "1"}
    forks = "forkserver" in multiprocessing.get_all_start_methods()
    if forks:
        settings["distributed.worker.multiprocessing-method"] = "forkserver"
    with dask.config.set(settings):
        if forks:  # a worker then starts without importing anything
            get_mp_context().set_forkserver_preload([__name__])
        cluster = LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # Dask's default pauses a worker that uses more than its share
            silence_logs=logging.ERROR,  # in the worker processes
            dashboard_address="127.0.0.1:0",
            env=environment,
        )
        try:
            with Client(cluster) as client:
                yield client
        finally:
            with contextlib.suppress(TimeoutError):  # its processes end with this one
                cluster.close(timeout=CLOSE)


@dataclass
class _Batch:
    """The points of one call: submits each, retries killed ones and collects the outcome.

    Ordering and the second try are ours, with at most one point per worker, because Dask (2026.8)
    queues only large groups of root tasks at its scheduler: it sends any other task to a worker
    once its dependencies are done, and if that worker dies, ``allowed-failures`` counts against the
    tasks that waited there too, so that points would fail without having run.
    """

    name: str  # of the study's run
    points: dict[str, Point]  # to run, by name
    outcome: Outcome
    client: Client
    workers: int | None  # on this machine; None where a scheduler brings its own
    device: str
    ready: deque[Point] = field(default_factory=deque)
    running: dict[Future, Point] = field(default_factory=dict)
    killed: set[str] = field(default_factory=set)  # names of points that are on their second try
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        points = self.points.values()
        needs = {point.name: self.points.keys() & point.needs.values() for point in points}
        self.graph = TopologicalSorter(needs)
        self.seen = self.began  # when there was a worker last

    def run(self) -> None:
        """Return when every point is done or has failed."""
        self.graph.prepare()
        while self.graph.is_active():
            self._replace_lost_workers()
            self._submit()
            if self.running:
                with contextlib.suppress(TimeoutError, CancelledError):
                    wait(list(self.running), timeout=LOOK, return_when="FIRST_COMPLETED")
            for future in [future for future in self.running if future.done()]:
                self._end(self.running.pop(future), future)

    def _replace_lost_workers(self) -> None:
        """Start new workers on this machine when Dask has not restarted a single one.

        A nanny that fails to restart its worker leaves for good, and a cluster of a fixed size
        then waits for ever (https://github.com/dask/distributed/issues/8537).
        """
        if self.workers is None or self.client.nthreads():
            self.seen = time.monotonic()
        elif time.monotonic() - self.seen > LOST:
            if self.client.cluster.workers:  # what is left of the old ones has to close first
                self.client.cluster.scale(0)
            else:
                self._say("no worker is left, new ones start")
                self.client.cluster.scale(self.workers)
                self.seen = time.monotonic()

    def _submit(self) -> None:
        """Submit one ready point per free worker; fail points that need a failed one."""
        for point in map(self.points.get, self.graph.get_ready()):
            if lost := [name for name in point.needs.values() if name in self.outcome.failed]:
                self._fail(point, f"needs {lost[0]}, which failed\n")
            else:
                self.ready.append(point)
        free = max(len(self.client.nthreads()), 1) - len(self.running)
        for _ in range(min(free, len(self.ready))):
            point = self.ready.popleft()
            arguments = (self.name, point, self.device, str(runs.runs_folder()))
            self.running[self.client.submit(_run_on_worker, *arguments, pure=False)] = point
            self._say(f"{point.name} starts")

    def _end(self, point: Point, future: Future) -> None:
        cancelled = CancelledError("cancelled by the scheduler")
        problem = cancelled if future.cancelled() else future.exception()
        killed = isinstance(problem, KilledWorker | PointKilledError)
        if problem is None:
            self.outcome.done.append(point.name)
            self.graph.done(point.name)
            self._say(f"{point.name} done")
        elif killed and point.name not in self.killed:
            self.killed.add(point.name)
            self.ready.appendleft(point)
            self._say(f"{point.name}: its process was killed, once more")
        elif isinstance(problem, CancelledError | KilledWorker | PointError):
            self._fail(point, f"{problem}\n")
        else:
            self._fail(point, "".join(format_exception(None, problem, future.traceback())))

    def _fail(self, point: Point, text: str) -> None:
        path = write_atomically(point_dir(self.name, point) / FAILED, text)
        self.outcome.failed.append(point.name)
        self.graph.done(point.name)
        self._say(f"{point.name} failed, {text.strip().splitlines()[-1]} ({path})")

    def _say(self, what: str) -> None:
        log.info(f"{self._count()}; {what}")

    def _count(self) -> str:
        done, failed = len(self.outcome.done), len(self.outcome.failed)
        return f"{done} of {len(self.points)} done" + (f", {failed} failed" if failed else "")

    def progress(self) -> str:
        """Return how many points are done, the minutes left, and how far the running ones are.

        The minutes follow from the points that have ended so far.
        """
        ended = len(self.outcome.done) + len(self.outcome.failed)
        words = [self._count()]
        if ended:
            left = (time.monotonic() - self.began) * (len(self.points) / ended - 1)
            words.append(f"about {left / 60:.0f} min left")
        running = list(self.running.values())
        words += [training_words(point.name, point_dir(self.name, point)) for point in running]
        return "; ".join(words)


def _run_on_worker(run: str, point: Point, device: str, folder: str) -> None:
    """Run a point in a worker.

    Args:
        run: the study's folder below runs/.
        point: the points that it needs are done.
        device: as in `gaitlib.system.device.choose_device`.
        folder: of all runs, as the study's process sees it.
    """
    if str(runs.runs_folder()) != folder:
        raise ConfigError(
            f"this worker's runs are in {runs.runs_folder()}, the study's in {folder}: start "
            f"workers with GAITLIB_WORKSPACE={Path(folder).parent}"
        )
    if (threads := get_worker().state.nthreads) != 1:
        raise ConfigError(
            f"this worker runs {threads} points at once, which would share a working folder: "
            "start workers with --nthreads 1"
        )
    execute_point(run, point, device)

"""Each process of a job tells the others that it lives, so that a stopped one is found and named.

A process that has ended closes its connections, which the others notice at once. One that is
stopped, or whose machine is gone, does not: the others would wait in a collective for hours. torch
has no other means for this: a shorter timeout of its collectives would also end a job in which rank
0 tests or writes files while the others wait.
"""

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

BEATS = 5  # per timeout, at least
LONGEST = 5.0  # seconds between beats


class Heartbeats:
    """Writes this process's beats into the job's store, and watches those of the others.

    Time is counted in this process's own beats, so its own pause (a laptop asleep) counts for none.

    Args:
        store: of torch.distributed; used by this alone.
        rank: of this process.
        world_size: number of processes.
        timeout: seconds without a beat after which a process counts as lost.
        on_lost: called once, with a message that names the process.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        timeout: float,
        on_lost: Callable[[str], None],
    ) -> None:
        self._store, self._rank, self._timeout = store, rank, timeout
        self._others = [other for other in range(world_size) if other != rank]
        self._on_lost = on_lost
        self._pause = min(timeout / BEATS, LONGEST)
        self._ended = threading.Event()
        self._unanswered = 0  # pauses since the store answered
        for work in (self._beat, self._watch_store):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Tell the others that this process ends, and stop watching them."""
        self._ended.set()
        with contextlib.suppress(Exception):  # the store may be gone, with the process that has it
            self._store.set(str(self._rank), "ended")

    def _beat(self) -> None:
        who = f"process {os.getpid()} on {socket.gethostname()}"
        beats = dict.fromkeys(self._others, "0 not seen yet")
        silent = dict.fromkeys(self._others, 0)  # pauses since the last beat
        for number in itertools.count(1):
            try:
                self._store.set(str(self._rank), f"{number} {who}")
                found = {other: self._read(str(other)) for other in self._others}
            except Exception:  # the process that has the store has ended, which others report
                self._ended.set()
                return
            self._unanswered = 0
            for other, beat in found.items():
                lives = beat and beat != beats[other] or beat == "ended"
                silent[other] = 0 if lives else silent[other] + 1
                beats[other] = beat or beats[other]
                self._judge(silent[other], f"rank {other} ({beats[other].partition(' ')[2]})")
            if self._ended.wait(self._pause):
                return

    def _read(self, key: str) -> str:
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _watch_store(self) -> None:
        while not self._ended.wait(self._pause):
            self._unanswered += 1
            self._judge(self._unanswered, "the process of the job's store, rank 0 or torchrun,")

    def _judge(self, pauses: int, who: str) -> None:
        if pauses * self._pause > self._timeout and not self._ended.is_set():
            self._ended.set()
            self._on_lost(
                f"{who} has not answered for {self._timeout:g} s: it is stopped, or its machine is "
                "gone. Start the job again; trainer_cfg.restore_hint: latest continues from the "
                "last checkpoint"
            )

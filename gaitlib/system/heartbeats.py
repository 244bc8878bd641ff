"""Each process of a job tells the others that it lives, so that a stopped one is found and named.

A process that has ended closes its connections, which the others notice at once. One that is
stopped, or whose machine is gone, does not: the others would wait in a collective for hours.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

BEATS = 5  # per timeout, at least
LONGEST = 5.0  # seconds between beats


class Heartbeats:
    """Writes this process's beats into the job's store, and watches those of the others.

    Args:
        store: of torch.distributed, with ``set``, ``check`` and ``get``; used by this alone.
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
        self._answered = time.monotonic()  # when the store did last
        self._seen = dict.fromkeys(self._others, self._answered)  # when each one's beat changed
        self._beats = dict.fromkeys(self._others, "")
        for work in (self._beat, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def close(self) -> None:
        """Tell the others that this process ends, and stop watching them."""
        self._ended.set()
        with contextlib.suppress(Exception):  # the store may be gone, with the process that has it
            self._store.set(str(self._rank), "ended")

    def _beat(self) -> None:
        number, before = 0, time.monotonic()
        who = f"process {os.getpid()} on {socket.gethostname()}"
        while not self._ended.is_set():
            number += 1
            try:
                self._store.set(str(self._rank), f"{number} {who}")
                found = {other: self._read(other) for other in self._others}
            except Exception:  # the process that has the store has ended, which others report
                self._ended.set()
                return
            now = time.monotonic()
            paused = now - before > self._timeout / 2  # this process itself was stopped
            for other, beat in found.items():
                if paused or beat != self._beats[other] or beat == "ended":
                    self._seen[other] = now
                self._beats[other] = beat
            self._answered = before = now
            self._ended.wait(self._pause)

    def _read(self, other: int) -> str:
        key = str(other)
        return self._store.get(key).decode() if self._store.check([key]) else ""

    def _judge(self) -> None:
        before = time.monotonic()
        while not self._ended.wait(self._pause):
            now = time.monotonic()
            if now - before > self._timeout / 2:  # this process itself was stopped
                self._answered = now
            before = now
            if now - self._answered > self._timeout:
                self._lose("the process that has the job's store, rank 0 or torchrun,")
                return
            for other, seen in self._seen.items():
                if self._answered - seen > self._timeout:
                    who = self._beats[other].partition(" ")[2]
                    self._lose(f"rank {other}{f' ({who})' if who else ''}")
                    return

    def _lose(self, who: str) -> None:
        if not self._ended.is_set():
            self._ended.set()
            self._on_lost(
                f"{who} has not answered for {self._timeout:g} s (trainer_cfg.process_timeout): it "
                "is stopped, or its machine is gone. Start the job again; "
                "trainer_cfg.restore_hint: latest continues from the last checkpoint"
            )

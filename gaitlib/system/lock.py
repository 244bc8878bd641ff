"""A lock that a process holds while it writes a folder, also on a disk that machines share.

The lock is a small file: who holds it, on which machine, since when. The holder touches it every
few seconds. A process on the same machine looks up whether the holder still lives; one on another
machine watches whether the file is still touched. So the lock of a killed process is no obstacle.
"""

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

BEAT = 5.0  # seconds between touches
PATIENCE = 60.0  # seconds without a touch after which the lock of another machine is stale


class LockedError(RuntimeError):
    """Another process holds the lock, or has taken it; the message says which."""


class Lock:
    """A lock file that this process holds.

    Args:
        path: of the file.
        what: it locks, for messages.
        text: the content of the file.
    """

    def __init__(self, path: Path, what: str, text: str) -> None:
        self.path, self.what, self.text = path, what, text
        self.holds = 1  # how many blocks of this process hold it
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._touch, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise `LockedError` if another process has taken the lock meanwhile.

        That can happen on a shared disk, to a process that was stopped for more than PATIENCE.
        """
        now = _read(self.path)
        if now is None or now[0] != self.text:
            now_by = "it was removed" if now is None else f"now {_describe(now[0])} has it"
            raise LockedError(
                f"{self.what} is no longer locked by this process ({now_by}), which stops writing "
                "to it: see which of the two should go on"
            )

    def release(self) -> None:
        """Remove the file, and its folder if that is empty."""
        self._released.set()
        self._thread.join()
        with contextlib.suppress(LockedError, OSError):
            self.check()
            self.path.unlink()
            self.path.parent.rmdir()

    def _touch(self) -> None:
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):  # of a disk that is away for a moment
                if (now := _read(self.path)) is None or now[0] != self.text:
                    return
                os.utime(self.path)


_held: dict[Path, Lock] = {}


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[Lock]:
    """Hold a lock in the block; a block inside of it may ask for the same one again.

    Args:
        path: of the lock file; its folder is made if needed.
        what: it locks, for messages.

    Raises:
        LockedError: if another process holds it.
    """
    lock = _held.get(path)
    if lock is None:
        lock = _held[path] = Lock(path, what, _take(path, what))
    else:
        lock.holds += 1
    try:
        yield lock
    finally:
        lock.holds -= 1
        if not lock.holds:
            del _held[path]
            lock.release()


def _take(path: Path, what: str) -> str:
    """Make the lock file and return its content; remove a stale one first."""
    me = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "machine": _machine(),
        "began": _began(os.getpid()),
    }
    text = json.dumps(me)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with contextlib.suppress(FileExistsError), path.open("x") as stream:
            stream.write(text)
            return text
        found = _read(path)
        if found is None:  # it was released meanwhile
            continue
        if _is_alive(path, found, what):
            raise LockedError(
                f"{what} is being written by {_describe(found[0])}: wait until it has ended, stop "
                "it, or use another --run"
            )
        log.warning("%s: its lock is left from %s, which has ended", what, _describe(found[0]))
        _remove(path, found[0])


def _read(path: Path) -> tuple[str, int] | None:
    """Return the content of a lock file and when it was touched (ns); None if there is none.

    Opening the file makes a network file system ask its server.
    """
    try:
        with path.open(errors="replace") as stream:
            return stream.read(10_000), os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _remove(path: Path, text: str) -> None:
    """Remove a stale lock file, but not one that another process has made in its place."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        found = _read(aside)
        if found is not None and found[0] != text and not path.exists():
            aside.rename(path)
        aside.unlink(missing_ok=True)


def _holder(text: str) -> dict[str, Any]:
    """Return what a lock file says; empty if it is not what `_take` writes."""
    try:
        holder = json.loads(text)
        return holder if type(holder["pid"]) is int and holder["pid"] > 0 else {}
    except (ValueError, TypeError, KeyError):
        return {}


def _describe(text: str) -> str:
    holder = _holder(text)
    if not holder:
        return "an unknown process"
    return f"process {holder['pid']} on {holder.get('host')} since {holder.get('since')}"


def _is_alive(path: Path, found: tuple[str, int], what: str) -> bool:
    """Return whether the holder of a lock still lives; may take PATIENCE seconds."""
    holder = _holder(found[0])
    if holder.get("machine") and holder["machine"] == _machine():
        return _began(holder["pid"]) == holder.get("began")
    log.info("%s is locked by %s: seeing whether it still lives", what, _describe(found[0]))
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        time.sleep(min(1.0, PATIENCE / 5))
        now = _read(path)
        if now != found:
            return now is not None  # it was touched, or released
    return False


def _machine() -> str:
    """Return what names this machine and its process ids since it was booted; "" if unknown.

    Two containers of a machine do not see each other's processes, so they count as two machines.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()} {boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return ""


def _began(pid: int) -> str:
    """Return when a process of this machine began, in its own units; "" if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]  # Z and X: dead

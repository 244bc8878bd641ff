"""The lock that a process holds while it writes a folder, also on a disk that machines share.

It is a `filelock.SoftFileLease`: a small file that names its holder, who touches it every few
seconds. On the same machine the lock of a killed process is taken over at once; on another one,
when nobody has touched it for LEASE seconds.
"""

import contextlib
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)

LEASE = 60.0  # seconds without a touch after which another machine's lock is taken over


class LockedError(UserError):
    """Another process holds the lock, or has taken it; the message says which."""


class Lock:
    """A lock that this process holds.

    Args:
        lease: the lock file, held.
        what: it locks, for messages.
    """

    def __init__(self, lease: SoftFileLease, what: str) -> None:
        self.lease, self.what = lease, what

    def check(self) -> None:
        """Raise `LockedError` if another process has taken the lock meanwhile.

        That can happen to a process that was stopped for more than LEASE seconds.
        """
        if self.lease.compromise is not None or not self.lease.is_lock_held_by_us:
            raise LockedError(
                f"{self.what} is no longer locked by this process (its lock is "
                f"{_holder(self.lease)}'s), which stops writing to it: see which of the two should "
                "go on"
            )


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[Lock]:
    """Hold a lock in the block; a block inside of it may ask for the same one again.

    Args:
        path: of the lock file. Its folder is made if needed, and removed if nothing else is in it;
            so are the folders above that were made for it.
        what: it locks, for messages.

    Raises:
        LockedError: if another process holds it. If that is on another machine, this takes some
            seconds, to see whether it still lives.
    """
    made = [folder for folder in path.parent.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    lease = SoftFileLease(
        path,
        lease_duration=LEASE,
        heartbeat_interval=LEASE / 12,
        is_singleton=True,
        thread_local=False,
    )
    try:
        _acquire(lease, what)
    except (Timeout, LeaseSettingsMismatch):  # the latter: the lock of another version's process
        raise LockedError(
            f"{what} is being written by {_holder(lease)}: wait until it has ended, stop it, or "
            "use another --run"
        ) from None
    try:
        yield Lock(lease, what)
    finally:
        lease.release()
        if not lease.is_locked:
            with contextlib.suppress(OSError):  # not empty
                for folder in (path.parent, *made):
                    folder.rmdir()


def _acquire(lease: SoftFileLease, what: str) -> None:
    """Acquire a lease; raise ``Timeout`` when its holder is seen to live."""
    try:
        lease.acquire(timeout=0)
        return
    except Timeout:
        if lease.owner is not None and lease.owner.hostname == socket.gethostname():
            raise  # else it is of another machine, or of a container with processes of its own
        log.info("%s is locked by %s: seeing whether it still lives", what, _holder(lease))
    touched = _touched(lease)
    while True:
        try:
            lease.acquire(timeout=LEASE / 10, poll_interval=LEASE / 100)
            return
        except Timeout:
            if _touched(lease) != touched:
                raise


def _touched(lease: SoftFileLease) -> int | None:
    try:
        return Path(lease.lock_file).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(lease: SoftFileLease) -> str:
    owner = lease.owner
    return "no process" if owner is None else f"process {owner.pid} on {owner.hostname}"

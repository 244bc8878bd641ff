"""Train one network with several processes: the only file that uses torch.distributed.

``torchrun`` starts the processes and gives each its rank. The collectives run over NCCL between
GPUs and over gloo between CPUs. A single process needs no process group: every function here then
returns at once, with the value of that process.
"""

import contextlib
import errno
import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gaitlib.system.device import choose_device
from gaitlib.system.errors import UserError
from gaitlib.system.heartbeats import Heartbeats

T = TypeVar("T")

#: How long a process waits for the others in a collective. Rank 0 may test or write files while
#: they wait; that it lives is what `Heartbeats` watches.
TIMEOUT = timedelta(hours=2)


@contextlib.contextmanager
def process_group(
    device: str = "auto", timeout: float = 600.0, *, share_gpu: bool = False
) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if any, and yield this one's device.

    If another process does not answer for ``timeout`` seconds, this one prints which, and ends with
    status 2.

    Args:
        device: as in `choose_device`.
        timeout: seconds to wait for the others at the start, and for their signs of life later.
        share_gpu: as in `choose_device`; the processes of one GPU connect over gloo, because NCCL
            needs a GPU for each.

    Raises:
        UserError: as `choose_device`; if the port is in use, or the others cannot be reached; or if
            a collective in the block finds that another process has ended.
    """
    local = _from_torchrun("LOCAL_RANK", 0), _from_torchrun("LOCAL_WORLD_SIZE", 1)
    here, size = launched_rank(), _from_torchrun("WORLD_SIZE", 1)
    chosen = choose_device(device, *local, share_gpu=share_gpu)
    if size == 1:
        yield chosen
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    threading.Thread(target=_stop_without_launcher, args=(os.getppid(),), daemon=True).start()
    nccl = chosen.type == "cuda" and not share_gpu and dist.is_nccl_available()  # not on Windows
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    try:
        store = _open_store(here, size, timedelta(seconds=timeout))
        dist.init_process_group(backend, store=store, rank=here, world_size=size, timeout=TIMEOUT)
        # a connection of its own: a call on the other one may wait
        beats = dist.PrefixStore("heartbeats", store.clone())
        heartbeats = Heartbeats(beats, here, size, timeout, _end_with)
    except (dist.DistError, ValueError, RuntimeError, OSError) as error:
        address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason or getattr(error, "errno", None) == errno.EADDRINUSE:
            raise UserError(
                f"the port of {address} is in use: give torchrun another with --master_port=N, or "
                "no port, and it chooses a free one"
            ) from error
        raise UserError(f"cannot reach the other processes at {address}: {reason}") from error
    try:
        yield chosen
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise UserError(
                f"rank {rank()} cannot continue: another process of this job has ended, and its "
                "message says why. trainer_cfg.restore_hint: latest continues from the last "
                "checkpoint"
            ) from error
        raise
    finally:
        heartbeats.close()
        dist.destroy_process_group()


def _open_store(rank: int, size: int, timeout: timedelta) -> dist.Store:
    """Return the store through which the processes find each other.

    torch's own server listens on all interfaces. If MASTER_ADDR is a loopback address, the one made
    here listens only there, and so do gloo's connections. torchrun has made a store of its own
    before, unless it is told not to (see `workbook.steps.launch`). A machine's name may stand for a
    loopback address on that machine alone, so a name other than localhost does not count.
    """
    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if _is_loopback(address):
        if "lo" in (name for _, name in socket.if_nameindex()):  # Linux
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        if not rank and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            family, _, _, _, where = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
            listener = socket.create_server(where[:2], family=family)
            return dist.TCPStore(
                address, int(port), size, True, timeout, master_listen_fd=listener.detach()
            )
    return next(dist.rendezvous("env://", rank, size, timeout=timeout))[0]


def _is_loopback(address: str) -> bool:
    try:
        return address == "localhost" or ipaddress.ip_address(address).is_loopback
    except ValueError:  # a name
        return False


def _end_with(message: str) -> None:
    """End this process, whose main thread waits for another one, with a message."""
    rank = launched_rank()
    sys.stderr.write(f"{f'rank {rank}: ' if rank else ''}error: {message}\n")
    end_process(2)


def end_process(status: int) -> None:
    """End this process at once if it is one of several; otherwise do nothing.

    Call it when all results are on the disk. On a normal exit, threads of gloo have sometimes
    aborted the process, which torchrun reports as a failed job.
    """
    if _from_torchrun("WORLD_SIZE", 1) > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _stop_without_launcher(launcher: int) -> None:
    """Send this process SIGTERM when torchrun has ended."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def launched_rank() -> int:
    """Return the rank that torchrun gave this process, 0 without torchrun; needs no group."""
    return _from_torchrun("RANK", 0)


def _from_torchrun(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def rank() -> int:
    """Return this process's number, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Return whether this process is rank 0, which writes the run's files."""
    return rank() == 0


def wait() -> None:
    """Wait until every process has called this."""
    largest(0)


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """Run the block in one process per machine first, so that the others find what it made."""
    first = _from_torchrun("LOCAL_RANK", 0) == 0 or world_size() == 1
    if not first:
        wait()
    yield
    if first:
        wait()


def broadcast(value: T) -> T:
    """Return rank 0's value (plain values, tensors on the CPU) in every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return every process's value, by rank, in every process."""
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """Return the largest of the processes' integers, without waiting for a GPU."""
    maximum = torch.tensor(value)
    if world_size() > 1:
        dist.all_reduce(maximum, dist.ReduceOp.MAX)
    return int(maximum)


def gather_rows(local: Tensor) -> Tensor:
    """Gather the rows of all processes, in the order of the batch that they share.

    Rank r of W holds rows r, r + W, r + 2 W, ... (`gaitlib.data.samplers.TripletSampler`). Only the
    local rows receive a gradient. It is multiplied by W, because DistributedDataParallel divides
    the sum of the processes' gradients by W.

    Shape:
        local: ``(N / W, ...)``
        returns: ``(N, ...)``
    """
    if world_size() == 1:
        return local
    pieces = [torch.empty_like(local) for _ in range(world_size())]
    dist.all_gather(pieces, local.detach().contiguous())
    if local.requires_grad:
        local = local.view_as(local)
        local.register_hook(lambda gradient: gradient * world_size())
    pieces[rank()] = local
    return torch.stack(pieces, dim=1).flatten(0, 1)


def from_rank_0(tensor: Tensor) -> Tensor:
    """Copy rank 0's values into ``tensor`` in every process; return it."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers to every process: each updates its batch-norm statistics separately."""
    for buffer in model.buffers():
        from_rank_0(buffer)


@contextlib.contextmanager
def data_parallel(
    model: nn.Module, sync_bn: bool = False, find_unused_parameters: bool = False
) -> Iterator[nn.Module]:
    """Yield the network to train with: the model itself, or its DistributedDataParallel.

    In the block, gradients are averaged over processes. Every process starts with rank 0's weights,
    and gets rank 0's batch-norm statistics before each step (call `share_buffers` after the last).
    The model's parameters remain the same tensors, so existing optimizers and channel groups stay
    valid. They may be replaced between steps, in all processes alike (`gaitlib.prune.removal`), and
    begin to learn (`gaitlib.quantize.late_bits`). On exit the original batch-norm modules are
    restored, with the trained tensors.

    Args:
        model: on its process's device.
        sync_bn: compute batch statistics over all processes (SyncBatchNorm, on GPUs); otherwise
            each process computes them over its part of the batch.
        find_unused_parameters: DistributedDataParallel's.

    Raises:
        UserError: for ``sync_bn`` with several processes on CPUs.
    """
    if world_size() == 1:  # batch statistics are over the whole batch already
        yield model
        return
    device = next(model.parameters()).device
    if sync_bn and device.type != "cuda":
        raise UserError(
            f"trainer_cfg.sync_BN with {world_size()} processes on {device}: torch has "
            "SyncBatchNorm on GPUs only. Write sync_BN: false, or train in one process"
        )
    batch_norm = nn.modules.batchnorm._BatchNorm
    originals = {n: m for n, m in model.named_modules() if isinstance(m, batch_norm)}
    if sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, on the same tensors
    ids = [device.index] if device.type == "cuda" else None
    try:
        yield _DataParallel(model, device_ids=ids, find_unused_parameters=find_unused_parameters)
    finally:
        for name, layer in originals.items():
            trained = model.get_submodule(name)
            layer._parameters.update(trained._parameters)
            layer._buffers.update(trained._buffers)
            layer.num_features = trained.num_features
            model.set_submodule(name, layer.train(model.training))


class _DataParallel(nn.Module):
    """A DistributedDataParallel that is made anew when the model's parameters change.

    DistributedDataParallel keeps the parameters that it began with, buckets of their size, and
    which of them have gradients. Parameters may be replaced, and begin or cease to learn.

    Args:
        model: as DistributedDataParallel takes it, like the arguments.
    """

    def __init__(self, model: nn.Module, **arguments: Any) -> None:
        super().__init__()
        self._arguments = arguments
        self._wrap(model)

    def _wrap(self, model: nn.Module) -> None:
        self._wrapped = [(p, p.requires_grad) for p in model.parameters()]
        self.replica = DistributedDataParallel(model, **self._arguments)

    def forward(self, *inputs: Any) -> Any:
        model = self.replica.module
        pairs = zip(self._wrapped, model.parameters(), strict=True)
        if any(a is not b or learns != b.requires_grad for (a, learns), b in pairs):
            self._wrap(model)
        return self.replica(*inputs)

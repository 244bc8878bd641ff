"""Several processes train one network: the only door to torch.distributed.

``torchrun`` starts the processes and tells each its rank; the collectives run over NCCL between
GPUs and over gloo between CPUs. One process needs no process group: every function here then
returns at once, with what one process has.
"""

import contextlib
import logging
import os
import signal
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

T = TypeVar("T")

#: How long a process waits for the others: rank 0 may measure or write while they do.
TIMEOUT = timedelta(hours=2)


class RendezvousError(OSError):
    """The processes could not find each other; the message holds the address and the fix."""


class LostProcessError(RuntimeError):
    """Another process of the job ended, and this one could not go on."""


@contextlib.contextmanager
def process_group(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did, and give this one's device.

    Raises:
        ValueError: as `choose_device`.
        RendezvousError: if the port is taken, or the others cannot be reached.
        LostProcessError: if a collective of the block found another process gone.
    """
    here = _from_torchrun("LOCAL_RANK", 0), _from_torchrun("LOCAL_WORLD_SIZE", 1)
    where = choose_device(device, *here)
    if _from_torchrun("WORLD_SIZE", 1) == 1:
        yield where
        return
    if where.type == "cuda":
        torch.cuda.set_device(where)
    threading.Thread(target=_stop_without_launcher, args=(os.getppid(),), daemon=True).start()
    address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    nccl = where.type == "cuda" and dist.is_nccl_available()  # not on Windows
    backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
    try:
        dist.init_process_group(backend, timeout=TIMEOUT)
    except (dist.DistError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        if "EADDRINUSE" in reason:
            raise RendezvousError(
                f"the port of {address} is in use: give torchrun another, --master_port=N, or "
                "none, and it takes a free one"
            ) from error
        raise RendezvousError(f"cannot meet the other processes at {address}: {reason}") from error
    try:
        yield where
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise LostProcessError(
                f"rank {rank()} cannot go on: another process of this job has ended, and its own "
                "message says why. trainer_cfg.restore_hint: latest goes on from the last "
                "checkpoint"
            ) from error
        raise
    finally:
        dist.destroy_process_group()


def leave(status: int) -> None:
    """End a process of a distributed job at once; do nothing in one that is alone.

    What it did is on the disk by then. Threads of gloo have been seen to abort a process at its
    ordinary end, which torchrun takes for a failed job.
    """
    if _from_torchrun("WORLD_SIZE", 1) > 1:
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _stop_without_launcher(launcher: int) -> None:
    """End this process, as SIGTERM does, once torchrun is gone."""
    while os.getppid() == launcher:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def launched_rank() -> int:
    """Return the rank that torchrun gave this process, 0 without it; needs no group."""
    return _from_torchrun("RANK", 0)


def _from_torchrun(name: str, default: int) -> int:
    return int(os.environ.get(name, default))


def rank() -> int:
    """Return this process's number, 0 up."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Say whether this process is rank 0, which writes the run's files."""
    return rank() == 0


def wait() -> None:
    """Wait until every process is here."""
    largest(0)


@contextlib.contextmanager
def one_first() -> Iterator[None]:
    """Let one process of each machine do the block first: it makes what the others then find."""
    first = _from_torchrun("LOCAL_RANK", 0) == 0 or world_size() == 1
    if not first:
        wait()
    yield
    if first:
        wait()


def broadcast(value: T) -> T:
    """Return rank 0's value (plain values, tensors on the CPU) in every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: T) -> list[T]:
    """Return every process's value, by rank, in every process."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def largest(value: int) -> int:
    """Return the largest of the processes' whole numbers. No GPU is waited for."""
    if world_size() == 1:
        return value
    found = torch.tensor(value)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def gather_rows(local: Tensor) -> Tensor:
    """Put the processes' rows back in the order of the batch that they share.

    Rank r of W holds rows r, r + W, r + 2 W, ... (`gaitlib.data.samplers.TripletSampler`). The
    gradient reaches the local rows alone, W times as large: DistributedDataParallel divides the
    sum of the processes' gradients by W.

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
    """Return rank 0's values in every process, written into ``tensor``."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process rank 0's buffers: batch-norm statistics, which each updates by itself."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


@contextlib.contextmanager
def shared(
    model: nn.Module, sync_bn: bool = False, find_unused_parameters: bool = False
) -> Iterator[nn.Module]:
    """Give the network to train with: the model itself, or its DistributedDataParallel.

    In the block, gradients are averaged over processes, and rank 0's weights are everybody's, as
    are its batch-norm statistics before each step (`share_buffers` for after the last). The model's
    parameters stay the tensors they were, so that optimizers and channel groups made before go on.
    Its batch norms are those it came with again afterwards, with the statistics of the training.

    Args:
        model: on its process's device.
        sync_bn: batch statistics over all processes (SyncBatchNorm, on GPUs); otherwise each
            process has those of its own part of the batch.
        find_unused_parameters: DistributedDataParallel's.

    Raises:
        ValueError: for ``sync_bn`` with several processes on CPUs.
    """
    if world_size() == 1:  # batch statistics are over the whole batch already
        yield model
        return
    device = next(model.parameters()).device
    if sync_bn and device.type != "cuda":
        raise ValueError(
            f"trainer_cfg.sync_BN with {world_size()} processes on {device}: torch has "
            "SyncBatchNorm on GPUs alone. Write sync_BN: false, or train in one process"
        )
    own = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    if sync_bn:
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place, on the same tensors
    ids = [device.index] if device.type == "cuda" else None
    try:
        yield DistributedDataParallel(
            model, device_ids=ids, find_unused_parameters=find_unused_parameters
        )
    finally:
        for name, layer in own.items():
            model.set_submodule(name, layer.train(model.training))

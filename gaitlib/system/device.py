"""The device and the number format that a network runs in."""

import ctypes
import logging
import platform
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gaitlib.system.errors import UserError

log = logging.getLogger(__name__)


def choose_device(
    device: str = "auto",
    local_rank: int = 0,
    local_processes: int = 1,
    *,
    share_gpu: bool = False,
) -> torch.device:
    """Return the device: ``auto`` is the GPU, or the CPU if there is none.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        local_rank: the number of this process on its machine; it gets the GPU of that number.
        local_processes: the number of processes on this machine.
        share_gpu: several processes may name one GPU, ``cuda:N``. It is slower than one process,
            and a way to test a job of several processes where there is one GPU.

    Raises:
        UserError: for another device, if CUDA is requested and absent, or if processes would have
            to share a GPU.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if count else "cpu"
    if not re.fullmatch("cpu|cuda(:[0-9]{1,3})?", device):
        raise UserError(f"device {device!r} is not one of auto, cpu, cuda, cuda:N")
    chosen = torch.device(device)
    if chosen.type == "cpu":
        return chosen
    if (chosen.index or 0) >= count:
        raise UserError(f"device {device!r} is not available ({count} GPUs): write 'auto' or 'cpu'")
    if local_processes == 1 or share_gpu and chosen.index is not None:
        return chosen
    if chosen.index is not None:
        raise UserError(
            f"device {device!r} names one GPU for {local_processes} processes: write 'cuda'"
        )
    if local_processes > count:
        raise UserError(
            f"{local_processes} processes need a GPU each, and there are {count}: "
            f"write --nproc_per_node={count}, or --device cpu"
        )
    return torch.device("cuda", local_rank)


def device_name(device: torch.device) -> str:
    """Return the model of a GPU, or of this machine's processor, for example ``AMD EPYC 7763``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Linux; platform.processor() is empty or "x86_64" there
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


@dataclass(frozen=True)
class Precision:
    """The number format that a network runs in; weights, losses and statistics stay float32.

    Attributes:
        device: of the network.
        dtype: of `torch.autocast`; None means float32 throughout.
    """

    device: torch.device
    dtype: torch.dtype | None = None

    def autocast(self) -> torch.autocast:
        """Return the context to run the network's forward in."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the gradient scaler, which float16 needs and the other formats do not."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def choose_precision(enable_float16: bool, amp_dtype: str, device: torch.device) -> Precision:
    """Return the format that ``enable_float16`` and ``amp_dtype`` request on a device.

    float16 needs a GPU: on a CPU the network runs in float32, and a warning reports it.

    Raises:
        UserError: if a GPU is too old for bfloat16.
    """
    if not enable_float16:
        return Precision(device)
    dtype = getattr(torch, amp_dtype)
    if dtype is torch.float16 and device.type != "cuda":
        log.warning(
            "enable_float16 needs a GPU: running in float32 on %s (amp_dtype: bfloat16 runs here)",
            device,
        )
        return Precision(device)
    if device.type == "cuda" and dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise UserError(f"{name} has no bfloat16: write amp_dtype: float16")
    return Precision(device, dtype)


def keep_freed_memory(device: torch.device | str) -> None:
    """Let glibc keep freed memory for the next step instead of returning it to the system.

    A training step on a CPU frees and allocates the same large blocks repeatedly, and the system
    clears every page each time. That takes a sixth of a step of the quickstart, and half of the
    time of a full-size batch. The process then keeps all its memory until it ends. Without glibc,
    or for a GPU, this does nothing.
    """
    if torch.device(device).type != "cpu" or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return  # not glibc
    trim_threshold, mmap_max = -1, -4  # from <malloc.h>
    mallopt(trim_threshold, -1)
    mallopt(mmap_max, 0)

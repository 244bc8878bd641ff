"""Whole numbers of 2 to 16 bits as bytes, and how many bytes a quantized tensor takes on disk.

A number is stored in two's complement, lowest bit first; bits fill each byte from its lowest
upwards. Only the last byte of a tensor is padded, with zeros. Numbers of 9 to 16 bits take 16, the
lower byte first. Wider ones are not packed: they are stored as float32.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from gaitlib.model.float_state import float_state
from gaitlib.model.network_cost import FLOAT_BITS, INT16_BITS, stored_bits
from gaitlib.system.errors import UserError


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the entries of the float network's ``state_dict`` that a file holds, by name.

    Not among them are step counters of batch norms and the scalars of attached quantizers.
    """
    return {
        name: tensor for name, tensor in float_state(model).items() if tensor.is_floating_point()
    }


def pack(k: Tensor, bits: int) -> Tensor:
    """Pack whole numbers into bytes; the module's head says how.

    Args:
        k: integers of any shape, in ``-(2^(bits-1) - 1) .. 2^(bits-1) - 1``.
        bits: 2..16.

    Returns:
        uint8, ``(stored_bytes(k.numel(), bits),)``, on the CPU.
    """
    values = k.detach().cpu().numpy().ravel().astype(np.int64)
    if bits in INT16_BITS:
        return torch.from_numpy(values.astype("<i2").view(np.uint8))
    codes = (values & (2**bits - 1)).astype(np.uint8)  # two's complement
    single = np.unpackbits(codes[:, None], axis=1, count=bits, bitorder="little")  # (numel, bits)
    return torch.from_numpy(np.packbits(single.ravel(), bitorder="little"))


def unpack(data: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return what `pack` packed.

    Args:
        data: uint8, ``(stored_bytes(prod(shape), bits),)``.
        bits: 2..16.
        shape: of the result.

    Returns:
        int32 of this shape, on the CPU.

    Raises:
        UserError: if ``bits`` is outside its range, or ``data`` holds the one code that is no
            level, ``-2^(bits-1)``.
    """
    if stored_bits(bits) == FLOAT_BITS:
        raise UserError(f"bits is {bits}; integers of 2 to 16 bits are packed")
    numel, raw = math.prod(shape), data.detach().cpu().numpy().ravel()
    if bits in INT16_BITS:
        values = raw.copy().view("<i2").astype(np.int32)
    else:
        single = np.unpackbits(raw, count=numel * bits, bitorder="little").reshape(numel, bits)
        codes = np.packbits(single, axis=1, bitorder="little").ravel().astype(np.int32)
        values = codes - (codes >> (bits - 1) << bits)  # the highest bit is the sign
    if (largest := np.abs(values).max(initial=0)) >= 2 ** (bits - 1):
        raise UserError(f"an integer is as large as {largest}; {bits} bits go to 2^{bits - 1} - 1")
    return torch.from_numpy(values).reshape(tuple(shape))

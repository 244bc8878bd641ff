"""Embed walks with a compressed network's file, in torch or in ONNX Runtime."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gaitlib.data.silhouettes import mask_fault
from gaitlib.data.transforms import BaseSilCuttingTransform
from gaitlib.deploy.network_file import SUFFIX, is_network_file, load_network
from gaitlib.system.errors import UserError

ONNX = ".onnx"
FILES = (SUFFIX, ".pt", ONNX)


class Recogniser:
    """Turns walks into embeddings; refuses what cannot be a walk.

    Args:
        path: of a compressed network: ``.safetensors``, ``.pt`` with the network file beside it, or
            ``.onnx``, float or of integers, for ONNX Runtime, in as many threads as torch has.

    Attributes:
        frame_size: rows and columns of the network's input.
        fingerprint: of the file. Embeddings of different networks cannot be compared.

    Raises:
        FileNotFoundError: the file is missing.
        UserError: it is another kind of file (NetworkFileError among them).
        ModuleNotFoundError: an ONNX file needs the extra ``onnx``.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no network at {path}: `gaitlib export` writes its file")
        if self.path.suffix not in FILES:
            raise UserError(f"{path} is no network's file: those end with {', '.join(FILES)}")
        if self.path.suffix == ONNX:
            from gaitlib.deploy import onnx_export  # an extra: pip install gaitlib[onnx]

            self.network = onnx_export.OnnxNetwork(path, torch.get_num_threads())
        elif is_network_file(self.path):
            self.network = load_network(self.path)
        else:
            raise UserError(
                f"{path} is a training checkpoint: `gaitlib export --run RUN --stage STAGE` makes "
                "a file of its network alone"
            )
        self.frame_size: tuple[int, int] = tuple(self.network.frame_size)
        self.fingerprint = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    def prepare(self, silhouettes: np.ndarray | Tensor) -> Tensor:
        """Return a walk as the network's input.

        Args:
            silhouettes: ``(T, H, W)`` uint8 of 0 to 255 or float of 0 to 1, pretreated: H is the
                network's, W is the network's or that before `BaseSilCuttingTransform`'s cut.

        Returns:
            float32 ``(1, T, H, W)`` of 0 to 1, cut.

        Raises:
            UserError: it cannot be a walk; the message has the fix.
            TypeError: it is no array.
        """
        frames = _as_tensor(silhouettes)
        if frames.ndim != 3:
            raise UserError(f"a walk is (T, H, W), got {tuple(frames.shape)}: give one at a time")
        if not frames.numel():
            t, height, width = frames.shape
            raise UserError(f"a walk of T = {t} frames of {height} x {width}: nothing is in it")
        if fault := mask_fault(_as_levels(frames).numpy()):
            raise UserError(f"the walk has {fault}")
        rows, columns = self.frame_size
        height, width = frames.shape[1:]
        cutting = BaseSilCuttingTransform().columns_of(width)
        if height == rows and width != columns == width - 2 * cutting:
            frames = frames[:, :, cutting : width - cutting]
        if tuple(frames.shape[1:]) != (rows, columns):
            raise UserError(
                f"frames of {height} x {width}, and the network sees {rows} x {columns}: `gaitlib "
                f"pretreat --size {rows}` crops, scales and centres raw masks"
            )
        if not frames.is_floating_point():
            frames = BaseSilCuttingTransform(cutting=0)(frames[None])[0]
        return frames.float()[None]

    def embed(self, silhouettes: np.ndarray | Tensor) -> Tensor:
        """Return the embedding of one walk, float32 ``(C, P)``; see `prepare`."""
        with torch.inference_mode():
            return self.network.embed(self.prepare(silhouettes))[0].float()


def _as_tensor(silhouettes: np.ndarray | Tensor) -> Tensor:
    """Return an array as a tensor on the CPU; also one that is mirrored, or may not be written.

    Raises:
        TypeError: it is no array of numbers.
    """
    if isinstance(silhouettes, Tensor):
        return silhouettes.detach().cpu()
    array = np.asarray(silhouettes)
    if array.dtype.kind not in "biuf":
        raise TypeError(
            f"a walk is an array (T, H, W) of numbers, got {type(silhouettes).__name__} of "
            f"{array.dtype}: `workbook.recognise.walks.find_walks` reads files"
        )
    return torch.from_numpy(array.copy())


def _as_levels(frames: Tensor) -> Tensor:
    """Return a walk's values as uint8 of 0 to 255, to be checked.

    Raises:
        UserError: they have another type or range.
    """
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        kind = str(frames.dtype).removeprefix("torch.")
        raise UserError(f"a walk of {kind}: give uint8 of 0 to 255, or float of 0 to 1")
    low, high = frames.min().item(), frames.max().item()
    if not (low >= 0 and high <= 1):  # NaN is refused too
        fix = "divide by 255, or give uint8" if 1 < high <= 255 and low >= 0 else "scale it"
        raise UserError(f"floats of {low:g} to {high:g}, and 0 to 1 are expected: {fix}")
    return (frames * 255).round().to(torch.uint8)

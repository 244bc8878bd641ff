"""Layers that map the feature maps of frames to embeddings and logits of horizontal parts.

Attribute names are the checkpoint keys of OpenGait. The order is SetBlockWrapper (a backbone over
frames), TemporalPooling, HorizontalPoolingPyramid, SeparateFCs, SeparateBNNecks.

No local variable may alias a parameter here: a trace names the parameter after the variable, and
only_train_once reads the trace and then no longer finds the parameter.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gaitlib.system.errors import UserError


class SetBlockWrapper(nn.Module):
    """Run an image network on every frame of every clip.

    Args:
        forward_block: maps ``(N, C, H, W)`` to ``(N, C', H', W')``.

    Shape:
        x: ``(N, C, T, H, W)``
        returns: ``(N, C', T, H', W')``
    """

    def __init__(self, forward_block: nn.Module) -> None:
        super().__init__()
        self.forward_block = forward_block

    def forward(self, x: Tensor) -> Tensor:
        """Move frames into the batch axis, run the network, and move them back."""
        n, c, t, h, w = x.shape
        y = self.forward_block(x.transpose(1, 2).reshape(n * t, c, h, w))  # (N * T, C', H', W')
        return y.reshape(n, t, *y.shape[1:]).transpose(1, 2)  # (N, C', T, H', W')


class TemporalPooling(nn.Module):
    """Take the largest value of each feature over the frames of a clip.

    Shape:
        x: ``(N, C, T, H, W)``; with ``seqL``, ``(1, C, sum of seqL, H, W)``
        seqL: ``(N,)`` integers, the number of frames of each clip, for clips joined along T
        returns: ``(N, C, H, W)``

    Raises:
        UserError: if ``seqL`` does not describe the frames given.
    """

    def forward(self, x: Tensor, seqL: Tensor | Sequence[int] | None = None) -> Tensor:  # noqa: N803
        """Pool whole clips, or the pieces that ``seqL`` describes."""
        if seqL is None:
            return x.max(2).values  # one frame gets the gradient; amax would share it, and slower
        lengths = torch.as_tensor(seqL).tolist()
        if len(x) != 1 or sum(lengths) != x.size(2) or min(lengths, default=0) < 1:
            raise UserError(
                f"seqL {lengths} needs one row of {sum(lengths)} frames, each clip 1 or more; "
                f"given are {len(x)} of {x.size(2)} frames"
            )
        return torch.cat([piece.max(2).values for piece in x.split(lengths, dim=2)])  # (N, C, H, W)


class HorizontalPoolingPyramid(nn.Module):
    """Summarise a feature map as horizontal strips, one vector (mean + max) per strip.

    Args:
        bins: strips at each pyramid level; ``(16, 8)`` gives 24 parts.

    Shape:
        x: ``(N, C, H, W)``, with H divisible by every entry of ``bins``
        returns: ``(N, C, P)``, with P = ``sum(bins)``

    Raises:
        UserError: if H does not split into equal strips; pooling would mix rows silently.
    """

    def __init__(self, bins: Sequence[int]) -> None:
        super().__init__()
        self.bins = tuple(bins)

    def forward(self, x: Tensor) -> Tensor:
        """Pool every strip of every level."""
        n, c, h, _ = x.shape
        if any(h % b for b in self.bins):
            raise UserError(
                f"a feature map of height {int(h)} does not split into {self.bins} strips;"
                " choose numbers in bin_num that divide it, or change the backbone's strides"
            )
        strips = [x.reshape(n, c, b, -1) for b in self.bins]  # (N, C, b, H/b * W)
        return torch.cat([s.mean(-1) + s.amax(-1) for s in strips], dim=-1)  # (N, C, P)


def _xavier(parts: int, rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(parts, rows, columns)))


class SeparateFCs(nn.Module):
    """One linear map per part without bias, from the backbone's channels to the embedding.

    Args:
        in_channels: C, the backbone's output channels.
        out_channels: C', numbers in the embedding of one part.
        parts_num: P, number of parts, the sum of ``bin_num``.
        norm: scale each output column of a map to length 1.

    Shape:
        x: ``(N, C, P)``
        returns: ``(N, C', P)``
    """

    def __init__(
        self,
        in_channels: int = 512,
        out_channels: int = 256,
        parts_num: int = 16,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.fc_bin = _xavier(parts_num, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply every part by its matrix."""
        x = x.permute(2, 0, 1)  # (P, N, C)
        y = x.matmul(F.normalize(self.fc_bin, dim=1) if self.norm else self.fc_bin)
        return y.permute(1, 2, 0)  # (N, C', P)


class SeparateBNNecks(nn.Module):
    """One batch norm and one classifier per part, used only in training.

    They are BNNecks (https://arxiv.org/abs/1903.07071).

    Args:
        class_num: K, number of training subjects.
        in_channels: C, ``SeparateFCs.out_channels``.
        parts_num: P, number of parts, the sum of ``bin_num``.
        norm: scale embeddings and classes to length 1 before they are multiplied.
        parallel_BN1d: one batch norm over all parts at once, or a list of one per part. The results
            are the same, but the checkpoint keys are ``bn1d.weight`` or ``bn1d.<part>.weight``.

    Shape:
        x: ``(N, C, P)``
        returns: normalised features ``(N, C, P)`` and logits ``(N, K, P)``
    """

    def __init__(
        self,
        class_num: int = 74,
        in_channels: int = 256,
        parts_num: int = 16,
        norm: bool = True,
        parallel_BN1d: bool = True,  # noqa: N803
    ) -> None:
        super().__init__()
        self.norm = norm
        self.parallel_BN1d = parallel_BN1d
        self.fc_bin = _xavier(parts_num, in_channels, class_num)
        if parallel_BN1d:
            self.bn1d = nn.BatchNorm1d(in_channels * parts_num)
        else:
            self.bn1d = nn.ModuleList(nn.BatchNorm1d(in_channels) for _ in range(parts_num))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalise over the batch, then classify every part."""
        if self.parallel_BN1d:
            x = self.bn1d(x.flatten(1)).reshape(x.shape)  # (N, C, P)
        else:
            x = torch.stack([bn(part) for bn, part in zip(self.bn1d, x.unbind(2), strict=True)], 2)
        features = x.permute(2, 0, 1)  # (P, N, C)
        if self.norm:
            features = F.normalize(features, dim=-1)
        logits = features.matmul(F.normalize(self.fc_bin, dim=1) if self.norm else self.fc_bin)
        return features.permute(1, 2, 0), logits.permute(1, 2, 0)  # (N, C, P), (N, K, P)

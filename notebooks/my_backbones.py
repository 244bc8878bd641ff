"""Two small backbones for notebook 8: a DenseNet and a MobileNet that read silhouettes.

A backbone maps frames ``(N, 1, H, W)`` to feature maps ``(N, C', H', W')`` and says C' in
``out_channels``. Nothing in this file knows of pruning. Put your own network beside it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Preactivated(nn.Sequential):
    """Batch norm, ReLU, convolution: DenseNet's order."""

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        conv = nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)
        super().__init__(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


class DenseLayer(nn.Module):
    """Puts ``growth`` new channels behind its input (Huang et al., CVPR 2017)."""

    def __init__(self, c_in: int, growth: int) -> None:
        super().__init__()
        self.narrow = Preactivated(c_in, 2 * growth, 1)
        self.grow = Preactivated(2 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input and the new channels."""
        return torch.cat((x, self.grow(self.narrow(x))), dim=1)


class DenseGait(nn.Module):
    """A DenseNet on single frames.

    Args:
        growth: channels that each dense layer adds.
        blocks: dense layers of each block; between two blocks the map and the channels halve.

    Shape:
        x: ``(N, 1, 64, 44)``
        returns: ``(N, out_channels, 16, 11)`` with two blocks
    """

    def __init__(self, growth: int = 8, blocks: Sequence[int] = (3, 4)) -> None:
        super().__init__()
        width = 2 * growth
        self.stem = nn.Conv2d(1, width, 3, stride=2, padding=1, bias=False)
        self.blocks = nn.Sequential()
        for i, depth in enumerate(blocks):
            if i:
                self.blocks.append(Preactivated(width, width // 2, 1))
                self.blocks.append(nn.AvgPool2d(2))
                width //= 2
            for _ in range(depth):
                self.blocks.append(DenseLayer(width, growth))
                width += growth
        self.last = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU())
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        return self.last(self.blocks(self.stem(x)))


class ConvNorm(nn.Sequential):
    """Convolution, batch norm and, unless ``linear``, ReLU6."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        stride: int = 1,
        groups: int = 1,
        linear: bool = False,
    ) -> None:
        conv = nn.Conv2d(c_in, c_out, size, stride, size // 2, groups=groups, bias=False)
        super().__init__(conv, nn.BatchNorm2d(c_out), nn.Identity() if linear else nn.ReLU6())


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow, and add (Sandler et al., CVPR 2018)."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int = 3) -> None:
        super().__init__()
        wide = expansion * c_in
        self.widen = ConvNorm(c_in, wide, 1)
        self.depthwise = ConvNorm(wide, wide, 3, stride, groups=wide)
        self.narrow = ConvNorm(wide, c_out, 1, linear=True)
        self.adds = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the new map, with the input added where the shapes allow it."""
        y = self.narrow(self.depthwise(self.widen(x)))
        return x + y if self.adds else y


class MobileGait(nn.Module):
    """A MobileNetV2 on single frames.

    Args:
        channels: of the first convolution, and behind each inverted residual.
        strides: of each inverted residual.

    Shape:
        x: ``(N, 1, 64, 44)``
        returns: ``(N, out_channels, 16, 11)``
    """

    def __init__(
        self,
        channels: Sequence[int] = (12, 16, 24, 24, 32),
        strides: Sequence[int] = (1, 2, 1, 1),
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(1, channels[0], 3, stride=2)
        pairs = zip(channels[:-1], channels[1:], strides, strict=True)
        self.blocks = nn.Sequential(*(InvertedResidual(*pair) for pair in pairs))
        self.out_channels = channels[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        return self.blocks(self.stem(x))

"""Backbones that turn one silhouette into one feature map: ResNet9 and Plain.

Attribute names are the checkpoint keys of OpenGait (https://github.com/ShiqiYu/OpenGait), so its
weights load here and ours load there. ResNet9 is the backbone of GaitBase (Fan et al., CVPR 2023,
https://arxiv.org/abs/2211.06597). The focal convolution is from GaitPart (Fan et al., CVPR 2020).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gaitlib.system.errors import UserError


class BasicConv2d(nn.Module):
    """A convolution without bias, named ``conv`` because that is its checkpoint key.

    Shape:
        x: ``(N, in_channels, H, W)``
        returns: ``(N, out_channels, H', W')``
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, padding: int
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return self.conv(x)


class FocalConv2d(nn.Module):
    """One 3x3 convolution that runs on each of ``2**halving`` horizontal strips alone (GaitPart).

    Each strip is zero-padded at its edges, so it never sees its neighbour.

    Shape:
        x: ``(N, in_channels, H, W)``, with H divisible by ``2**halving``
        returns: ``(N, out_channels, H, W)``
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, halving: int) -> None:
        super().__init__()
        self.strips = 2**halving
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Convolve strip by strip; raise ``UserError`` if the height does not split evenly."""
        height = x.size(2)
        if height % self.strips:
            raise UserError(
                f"a focal convolution cannot split height {int(height)} into {self.strips} strips;"
                " lower the last number of its FC-<channels>-<halvings>"
            )
        return torch.cat([self.conv(strip) for strip in x.chunk(self.strips, dim=2)], dim=2)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    """Return the projection of a residual block, or None if the identity already fits."""
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016, https://arxiv.org/abs/1512.03385).

    Shape:
        x: ``(N, in_channels, H, W)``
        returns: ``(N, width, H / stride, W / stride)``, rounded up
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the convolved input."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output is four times the width.

    Shape:
        x: ``(N, in_channels, H, W)``
        returns: ``(N, 4 * width, H / stride, W / stride)``, rounded up
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv1x1(in_channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv1x1(width, self.expansion * width)
        self.bn3 = nn.BatchNorm2d(self.expansion * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, self.expansion * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the convolved input."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


BLOCKS = {"BasicBlock": BasicBlock, "Bottleneck": Bottleneck}


class ResNet9(nn.Module):
    """A small residual network for silhouettes. GaitBase has one residual unit per block.

    A block is one of ``layer1``, ``layer2``, ...; there may be any number of blocks.

    Args:
        block: the class of the residual units, ``BasicBlock`` or ``Bottleneck``.
        channels: width of each block.
        layers: residual units in each block; a block of 0 units returns its input, as in OpenGait.
        strides: stride of each block's first unit.
        maxpool: halve the map after the first convolution (3x3, stride 2).
        in_channel: channels of the input; 1 for silhouettes.

    Shape:
        x: ``(N, in_channel, H, W)``
        returns: ``(N, out_channels, H', W')``; strides 1, 2, 2, 1 take 64 x 44 to 16 x 11

    Raises:
        UserError: for an unknown block, or lists of different lengths.
    """

    def __init__(
        self,
        block: str = "BasicBlock",
        channels: Sequence[int] = (32, 64, 128, 256),
        layers: Sequence[int] = (1, 2, 2, 1),
        strides: Sequence[int] = (1, 2, 2, 1),
        maxpool: bool = True,
        in_channel: int = 1,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise UserError(f"unknown block {block!r}; choose from {sorted(BLOCKS)}")
        if not len(channels) == len(layers) == len(strides) or not channels:
            raise UserError(
                "channels, layers and strides need one entry per block, not "
                f"{list(channels)}, {list(layers)} and {list(strides)}"
            )
        self.num_blocks = len(channels)
        self.conv1 = BasicConv2d(in_channel, channels[0], 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if maxpool else None
        width = channels[0]
        for i in range(self.num_blocks):
            units = nn.Sequential()
            for j in range(layers[i]):
                units.append(BLOCKS[block](width, channels[i], strides[i] if j == 0 else 1))
                width = channels[i] * BLOCKS[block].expansion
            self.add_module(f"layer{i + 1}", units)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for i in range(self.num_blocks):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x


class Plain(nn.Module):
    """A chain of convolutions with LeakyReLU, the backbone of OpenGait's Baseline.

    Args:
        layers_cfg: one word per layer: ``BC-<c>`` is a convolution to c channels, ``FC-<c>-<h>`` a
            focal convolution on ``2**h`` strips, ``M`` a 2x2 max pooling. The first convolution is
            5x5, the others are 3x3; none has a bias.
        in_channels: channels of the input; 1 for silhouettes.

    Shape:
        x: ``(N, in_channels, H, W)``
        returns: ``(N, out_channels, H', W')``; each M halves H and W (rounded down)

    Raises:
        UserError: for any other word, or a chain that does not start with a convolution.
    """

    def __init__(self, layers_cfg: Sequence[str], in_channels: int = 1) -> None:
        super().__init__()
        if not layers_cfg or layers_cfg[0] == "M":
            raise UserError(f"layers_cfg has to start with a convolution, not {layers_cfg!r}")
        self.feature = nn.Sequential()  # its indices count every layer and are checkpoint keys
        width = in_channels
        for i, word in enumerate(layers_cfg):
            if word == "M":
                self.feature.append(nn.MaxPool2d(2, 2))
                continue
            kernel_size = 5 if i == 0 else 3
            match word.split("-"):
                case ["BC", c] if c.isdecimal():
                    conv = BasicConv2d(width, int(c), kernel_size, 1, kernel_size // 2)
                case ["FC", c, halving] if c.isdecimal() and halving.isdecimal():
                    conv = FocalConv2d(width, int(c), kernel_size, int(halving))
                case _:
                    raise UserError(
                        f"layers_cfg[{i}] is {word!r}; use BC-<channels>, FC-<channels>-<halvings>"
                        " or M"
                    )
            self.feature.append(conv)
            self.feature.append(nn.LeakyReLU(inplace=True))
            width = int(c)
        self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        return self.feature(x)


BACKBONES = {"ResNet9": ResNet9, "Plain": Plain}

"""Backbones that turn one silhouette into one feature map: ResNet9 and Plain.

Attribute names are the checkpoint keys of OpenGait (https://github.com/ShiqiYu/OpenGait), so its
weights load here and ours load there. ResNet9 is the backbone of GaitBase (Fan et al., CVPR 2023,
https://arxiv.org/abs/2211.06597). The focal convolution is from GaitPart (Fan et al., CVPR 2020).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gaitlib.model.widths import MAX_WIDTH
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


class FocalConv2d(BasicConv2d):
    """One 3x3 convolution that runs on each of ``2**halving`` horizontal strips alone (GaitPart).

    Each strip is zero-padded at its edges, so it never sees its neighbour.

    Shape:
        x: ``(N, in_channels, H, W)``, with H divisible by ``2**halving``
        returns: ``(N, out_channels, H, W)``
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, halving: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, 1, kernel_size // 2)
        self.strips = 2**halving

    def forward(self, x: Tensor) -> Tensor:
        """Convolve strip by strip; raise ``UserError`` if the height does not split evenly."""
        height = x.size(2)
        if height % self.strips:
            raise UserError(
                f"a focal convolution cannot split height {int(height)} into {self.strips} strips;"
                " lower the last number of its FC-<channels>-<halvings>"
            )
        return torch.cat([self.conv(strip) for strip in x.chunk(self.strips, dim=2)], dim=2)


#: Kernel sizes of a residual unit's convolutions, and its output channels over its width.
BLOCKS = {"BasicBlock": ((3, 3), 1), "Bottleneck": ((1, 3, 1), 4)}


class ResidualUnit(nn.Module):
    """Convolutions ``conv1``, ... with batch norms ``bn1``, ..., added to a shortcut.

    After He et al., 2016, https://arxiv.org/abs/1512.03385.

    Args:
        block: ``BasicBlock``, two 3x3 convolutions, or ``Bottleneck``, of 1x1, 3x3 and 1x1, which
            returns four times as many channels as its width.
        in_channels: of the input.
        width: channels inside.
        stride: of the first 3x3 convolution.

    Shape:
        x: ``(N, in_channels, H, W)``
        returns: ``(N, out_channels, H / stride, W / stride)``, rounded up
    """

    def __init__(self, block: str, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        sizes, expansion = BLOCKS[block]
        outputs = [width] * (len(sizes) - 1) + [expansion * width]
        inputs = [in_channels, *outputs[:-1]]
        for i, size in enumerate(sizes):
            conv = _conv(inputs[i], outputs[i], size, stride if i == sizes.index(3) else 1)
            self.add_module(f"conv{i + 1}", conv)
            self.add_module(f"bn{i + 1}", nn.BatchNorm2d(outputs[i]))
        self.relu = nn.ReLU(inplace=True)
        self.depth, self.out_channels, self.downsample = len(sizes), outputs[-1], None
        if stride != 1 or in_channels != self.out_channels:
            projection = _conv(in_channels, self.out_channels, 1, stride)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(self.out_channels))

    def layers(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Return the convolutions, each with its batch norm, in order."""
        pairs = range(1, self.depth + 1)
        return [(self.get_submodule(f"conv{i}"), self.get_submodule(f"bn{i}")) for i in pairs]

    def forward(self, x: Tensor) -> Tensor:
        """Add the shortcut to the convolved input."""
        y = x
        *inner, (last, norm) = self.layers()
        for conv, bn in inner:
            y = self.relu(bn(conv(y)))
        y = norm(last(y))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


def _conv(in_channels: int, out_channels: int, size: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, size, stride, padding=size // 2, bias=False)


class ResNet9(nn.Module):
    """GaitBase's backbone: a first convolution and one block per entry of ``channels``.

    The blocks are ``layer1``, ``layer2``, ...

    Args:
        block: the residual unit, of two convolutions (``BasicBlock``) or of three.
        in_channel: channels of the input; 1 for silhouettes.
        channels: width of each block; a Bottleneck returns four times as many channels.
        layers: residual units of each block; 0 leaves the block out.
        strides: of the first unit of each block.
        maxpool: halve the map after the first convolution (3x3, stride 2).

    Shape:
        x: ``(N, in_channel, H, W)``
        returns: ``(N, out_channels, H', W')``; strides 1, 2, 2, 1 take 64 x 44 to 16 x 11

    Raises:
        UserError: for an unknown block, or lists of different lengths.
    """

    def __init__(
        self,
        block: str = "BasicBlock",
        in_channel: int = 1,
        channels: Sequence[int] = (64, 128, 256, 512),
        layers: Sequence[int] = (1, 1, 1, 1),
        strides: Sequence[int] = (1, 2, 2, 1),
        maxpool: bool = False,
    ) -> None:
        super().__init__()
        if block not in BLOCKS:
            raise UserError(f"unknown block {block!r}; choose from {sorted(BLOCKS)}")
        if not len(channels) == len(layers) == len(strides) or not channels:
            raise UserError(
                f"channels {list(channels)}, layers {list(layers)} and strides {list(strides)} "
                "need one entry per block"
            )
        self.conv1 = BasicConv2d(in_channel, channels[0], 3, 1, 1)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if maxpool else None
        self.out_channels, self.num_blocks = channels[0], len(channels)
        for i in range(self.num_blocks):
            units = nn.Sequential()
            for j in range(layers[i]):
                stride = strides[i] if j == 0 else 1
                units.append(ResidualUnit(block, self.out_channels, channels[i], stride))
                self.out_channels = units[-1].out_channels
            self.add_module(f"layer{i + 1}", units)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        x = self.relu(self.bn1(self.conv1(x)))
        if self.maxpool is not None:
            x = self.maxpool(x)
        for i in range(self.num_blocks):
            x = self.get_submodule(f"layer{i + 1}")(x)
        return x


class Plain(nn.Module):
    """The Baseline's backbone: a chain of convolutions with LeakyReLU.

    Args:
        layers_cfg: the layers in order. ``BC-c`` is a convolution with c output channels, ``M`` a
            2x2 max pooling, ``FC-c-h`` a focal convolution, which treats 2^h horizontal strips
            separately. The first convolution is 5x5, the others are 3x3; none has a bias.
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
            raise UserError(f"layers_cfg {list(layers_cfg)} must start with a convolution")
        self.feature = nn.Sequential()  # its indices count every layer and are checkpoint keys
        self.out_channels = in_channels
        for i, word in enumerate(layers_cfg):
            if word == "M":
                self.feature.append(nn.MaxPool2d(2, 2))
                continue
            kind, *numbers = word.split("-")
            if len(numbers) != {"BC": 1, "FC": 2}.get(kind) or not all(map(_is_width, numbers)):
                raise UserError(
                    f"layers_cfg[{i}] is {word!r}: write BC-<channels>, FC-<channels>-<halvings> "
                    f"or M, with numbers from 1 to {MAX_WIDTH}"
                )
            size, (width, *halving) = 5 if i == 0 else 3, map(int, numbers)
            if halving:
                conv = FocalConv2d(self.out_channels, width, size, *halving)
            else:
                conv = BasicConv2d(self.out_channels, width, size, 1, size // 2)
            self.feature.append(conv)
            self.feature.append(nn.LeakyReLU(inplace=True))
            self.out_channels = width

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature map of each silhouette."""
        return self.feature(x)


def _is_width(text: str) -> bool:
    return text.isdecimal() and 1 <= int(text[:9]) <= MAX_WIDTH


BACKBONES = {"ResNet9": ResNet9, "Plain": Plain}


def add_backbone(kind: type[nn.Module], name: str = "") -> str:
    """Let `build_model`, and files of networks, know a backbone of one's own.

    Args:
        kind: a module that maps frames ``(N, 1, H, W)`` to maps ``(N, C', H', W')``, whose number
            C' is its ``out_channels``.
        name: what ``backbone_cfg.type`` calls it; by default ``my_package.my_module:MyNet``.

    Returns:
        The name.

    Raises:
        UserError: if it is no class of modules.
    """
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise UserError(f"{name or kind} is no class of torch.nn.Module, as a backbone has to be")
    name = name or f"{kind.__module__}:{kind.__qualname__}"
    BACKBONES[name] = kind
    return name

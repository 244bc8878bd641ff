"""A backbone that is not part of the package: depthwise layers, and a concatenation."""

import torch
from torch import Tensor, nn


class Mobile(nn.Module):
    """Maps frames ``(N, 1, H, W)`` to ``(N, C, H / 2, W / 2)``, with C = ``out_channels``."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.out_channels = 2 * width
        self.first = nn.Sequential(nn.Conv2d(1, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.mix = nn.Conv2d(2 * width, 2 * width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps of each frame."""
        x = self.first(x)
        return torch.relu(self.mix(torch.cat((x, self.spread(x)), 1)))


def no_class() -> None:
    """Nothing that could be a backbone."""

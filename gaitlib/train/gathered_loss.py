"""The loss of a batch that several processes share."""

from torch import Tensor, nn

from gaitlib.model import GaitOutput
from gaitlib.system.distributed import gather_rows, world_size


class GatheredLoss(nn.Module):
    """A loss on the whole batch, when each of W processes holds a part of it.

    Every process computes the loss of all N clips and differentiates it with respect to its N / W
    clips. So the gradient is that of one process with the whole batch.

    Args:
        losses: maps output and labels to (total, scalars), as `gaitlib.model.GaitLoss`.
    """

    def __init__(self, losses: nn.Module) -> None:
        super().__init__()
        self.losses = losses

    def forward(self, output: GaitOutput, labels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total and the scalars of the whole batch."""
        if world_size() == 1:
            return self.losses(output, labels)
        whole = GaitOutput(*(None if t is None else gather_rows(t.float()) for t in output))
        return self.losses(whole, gather_rows(labels))

"""Gait networks and their losses, with OpenGait's names for arguments and checkpoint keys."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gaitlib.model import heads
from gaitlib.model.backbones import BACKBONES
from gaitlib.model.gaitbase import BACKBONE, FRAME, GaitBase, GaitOutput
from gaitlib.model.losses import build_losses
from gaitlib.system.errors import UserError

__all__ = ["BACKBONE", "FRAME", "GaitBase", "GaitOutput", "build_losses", "build_model", "outline"]


def build_model(
    backbone_cfg: Mapping[str, Any],
    SeparateFCs: Mapping[str, Any],  # noqa: N803
    SeparateBNNecks: Mapping[str, Any] | None,  # noqa: N803
    bin_num: Sequence[int],
    frame_size: Sequence[int] = FRAME,
) -> GaitBase:
    """Build a network from the entries of OpenGait's ``model_cfg``.

    Args:
        backbone_cfg: ``type`` (``ResNet9``, ``Plain``, or what `backbones.add_backbone` returned)
            and that class's arguments.
        SeparateFCs: arguments of `heads.SeparateFCs`.
        SeparateBNNecks: arguments of `heads.SeparateBNNecks`; None builds a network that embeds but
            does not classify.
        bin_num: strips at each level of the pyramid.
        frame_size: rows and columns of its frames, see `GaitBase`.

    Raises:
        UserError: for an unknown backbone, or entries that do not fit each other.
        TypeError: for an argument the named class does not take.
    """
    arguments = dict(backbone_cfg)
    kind = arguments.pop("type", None)
    if kind not in BACKBONES:
        if ":" in str(kind):
            raise UserError(
                f"its backbone is {kind}, and no file imports code: pass the class, as in "
                f"load_network(path, backbone={kind.rpartition(':')[2]})"
            )
        raise UserError(f"unknown backbone_cfg.type {kind!r}; choose from {sorted(BACKBONES)}")
    backbone, fcs = BACKBONES[kind](**arguments), heads.SeparateFCs(**SeparateFCs)
    bnnecks = None if SeparateBNNecks is None else heads.SeparateBNNecks(**SeparateBNNecks)
    return GaitBase(backbone, fcs, bnnecks, bin_num, frame_size)


def outline(architecture: Mapping[str, Any]) -> GaitBase:
    """Build a network as shapes alone: this takes no memory and draws no random number.

    Args:
        architecture: arguments of `build_model`, which raises the errors.
    """
    with torch.device("meta"):
        return build_model(**architecture)

"""Whether frames are silhouettes such as networks see.

A silhouette is uint8, 0 where there is background and 255 where there is the person; edges may be
grey. `mask_fault` is the one test of that. It is used when a data set is opened, when raw masks are
pretreated, and when a walk is embedded.
"""

import numpy as np

#: A person is at least this bright somewhere.
BRIGHT = 128
#: A border brighter than this share of 255 is background: the mask is inverted.
BRIGHT_BORDER = 0.6
#: The least and the greatest share of the frame that a person fills.
FILLED = 0.0005, 0.75


def mask_fault(frames: np.ndarray) -> str:
    """Return why frames are no silhouettes of 0 to 255, and the fix; "" if they can be.

    It looks at the range of values, at the border (bright in an inverted mask) and at the share of
    the frame that is filled.

    Args:
        frames: ``(T, H, W)`` uint8, aligned or raw, with T, H and W at least 1.
    """
    top = int(frames.max())
    if top == 0:
        return "frames that are all black, with nobody in them: segment the walk again"
    if top == 1:
        return (
            "0/1 masks (the largest value is 1 of 255): multiply them by 255, or let `gaitlib "
            "pretreat` read them"
        )
    if top < BRIGHT:
        return (
            f"masks whose largest value is {top} of 255: make the person 255, or let `gaitlib "
            "pretreat --threshold` read them"
        )
    border = border_brightness(frames)
    if border > BRIGHT_BORDER:
        return (
            f"inverted masks (the border is {border:.0%} bright, so the background is 255): take "
            "255 - value, or let `gaitlib pretreat` read them"
        )
    filled = float(frames.mean()) / 255
    if not FILLED[0] <= filled <= FILLED[1]:
        return (
            f"frames that are {filled:.2%} filled, where a person fills {FILLED[0]:.2%} to "
            f"{FILLED[1]:.0%}: segment the walk again"
        )
    return ""


def border_brightness(frames: np.ndarray) -> float:
    """Return the mean of the outer rows and columns of ``(T, H, W)`` frames, as share of 255."""
    sides = frames[:, 0], frames[:, -1], frames[:, :, 0], frames[:, :, -1]
    return sum(int(side.sum()) for side in sides) / (255 * sum(side.size for side in sides))

"""One row of ``bits.csv``: the bits of every quantizer after a step, and the allowed intervals."""

import math

from gaitlib.quantize.geta import GETA


def bits_row(optimizer: GETA) -> dict[str, float]:
    """Return the bits after the optimizer's last step, real-valued.

    Columns:
        weights:<layer>, activations:<layer>: bits of the layer's weight, of its input; NaN while
            nothing is rounded.
        weights_min, weights_max, activations_min, activations_max: the allowed interval; NaN in
            warm-up, which has none, and while nothing is rounded.
        outside: how often a quantizer was outside its interval after a step, over all steps so far.
    """
    control = optimizer.control
    table = control.quantization.bits()
    names = table["kind"] + ":" + table["layer"]
    values = table["bits"] if control.rounds else [math.nan] * len(table)
    bits = dict(zip(names, values, strict=True))
    return bits | _allowed_intervals(optimizer) | {"outside": int(control.outside)}


def _allowed_intervals(optimizer: GETA) -> dict[str, float]:
    plan, step = optimizer.control.plan, optimizer.num_steps
    bound = optimizer.control.rounds and plan.phase(step) != "warm-up"
    row = {}
    for kind in ("weights", "activations"):
        interval = getattr(plan, kind)
        most = interval.after(plan.projection.shrinks_by(step))
        row[f"{kind}_min"] = float(interval.least) if bound else math.nan
        row[f"{kind}_max"] = float(most) if bound else math.nan
    return row

"""CASIA-B's two protocols with a choice of views, as the tests of evaluation use them."""

from gaitlib.config.protocol_cfg import built_in_protocols
from gaitlib.evaluate import evaluate_features

INDOOR, CROSS_VIEW = (built_in_protocols()[n] for n in ("casia-b", "casia-b-cross-view"))


def evaluate_indoor(
    features, table, metric="euc", cross_view_gallery=False, *, views=INDOOR.views, **options
):
    """Evaluate by CASIA-B's protocol, or by its cross-view one."""
    protocol = CROSS_VIEW if cross_view_gallery else INDOOR
    protocol = protocol.model_copy(update={"views": views})
    return evaluate_features(features, table, protocol, metric, **options)

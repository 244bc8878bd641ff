"""CASIA-B's two protocols with a choice of views, as the tests of evaluation use them."""

from dataclasses import replace

from gaitlib.evaluate import evaluate_features
from gaitlib.evaluate.protocols import PROTOCOLS

INDOOR, CROSS_VIEW = (PROTOCOLS[n] for n in ("casia-b", "casia-b-cross-view"))


def evaluate_indoor(
    features, table, metric="euc", cross_view_gallery=False, *, views=INDOOR.views, **options
):
    """Evaluate by CASIA-B's protocol, or by its cross-view one."""
    protocol = CROSS_VIEW if cross_view_gallery else INDOOR
    protocol = replace(protocol, views=views)
    return evaluate_features(features, table, protocol, metric, **options)

"""Compress gait networks in one training run: data, model, HESSO / GETA, evaluation, files.

The names that most programs need stand here, so ``import gaitlib`` is enough. Each is imported from
its module when it is first used, so that the import itself costs nothing.
"""

import importlib
from typing import Any

_HOMES = {
    "gaitlib.data.casia_b": ("load_split",),
    "gaitlib.data.samplers": ("InferenceSampling", "TripletSampling"),
    "gaitlib.data.batches": ("inference_batches", "training_batches"),
    "gaitlib.data.transforms": ("build_transform",),
    "gaitlib.model": ("GaitBase", "build_losses", "build_model"),
    "gaitlib.model.backbones": ("add_backbone",),
    "gaitlib.model.network_cost": ("count_parameters", "macs_per_frame"),
    "gaitlib.model.widths": ("layer_widths",),
    "gaitlib.evaluate": ("embed_batches", "evaluate_features"),
    "gaitlib.evaluate.protocols": ("PROTOCOLS", "Protocol"),
    "gaitlib.prune.oto": ("trace",),
    "gaitlib.prune.schedules": ("PruningSchedule",),
    "gaitlib.prune.hesso_settings": ("Budget", "HessoSettings", "Scores", "Sparsity"),
    "gaitlib.prune.hesso": ("HESSO", "build_hesso", "hesso"),
    "gaitlib.quantize.bit_settings": ("FloatFirst", "GetaSettings", "Qasso"),
    "gaitlib.quantize.geta": ("GETA", "build_geta", "geta"),
    "gaitlib.quantize.quantization": ("calibrate", "quantize_network"),
    "gaitlib.train.loop": ("Report", "fit"),
    "gaitlib.train.training_state": ("TrainingState",),
    "gaitlib.deploy.cut_network": ("construct_compressed_model", "cut"),
    "gaitlib.deploy.network_file": ("load_network", "write_network"),
    "gaitlib.deploy.onnx_export": ("write_onnx",),
    "gaitlib.system.errors": ("UserError",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a name of ``__all__`` from its module."""
    if name not in _HOME:
        raise AttributeError(f"module 'gaitlib' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__

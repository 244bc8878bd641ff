"""The smallest experiment that has everything: four walkers, two layers, two pruning periods."""

from pathlib import Path

import yaml

from workbook.config import Experiment, load_experiment

SMALL = {
    "data_cfg.walker": {"subjects": 4, "train": 3, "frames": [4, 5]},
    "model_cfg.backbone_cfg": {"type": "Plain", "layers_cfg": ["BC-4", "M", "BC-8"]},
    "model_cfg.SeparateFCs": {"in_channels": 8, "out_channels": 4, "parts_num": 4},
    "model_cfg.SeparateBNNecks": {"class_num": 3, "in_channels": 4, "parts_num": 4},
    "model_cfg.bin_num": [4],
    "trainer_cfg.sampler": {"batch_size": [2, 2], "frames_num_fixed": 2},
    "trainer_cfg.total_iter": 10,
    "trainer_cfg.save_iter": 3,
    "trainer_cfg.log_iter": 1,
    "scheduler_cfg": {"scheduler": "OneCycleLR"},
    "compression_optimizer": "hesso",
    "geta_optimizer_cfg": None,
    "hesso_optimizer_cfg": {
        "variant": "adamw",
        "lr": 0.01,
        "start_pruning_step": 1,
        "pruning_steps": 6,
        "pruning_periods": 2,
    },
}

#: Changes to SMALL: prune in float up to step 5, choose bits at step 6, learn ranges from step 8.
LATE_BITS = {
    "compression_optimizer": "geta",
    "hesso_optimizer_cfg": None,
    "geta_optimizer_cfg": {
        "variant": "adamw",
        "lr": 0.01,
        "target_macs": 0.7,
        "start_pruning_step": 1,
        "pruning_steps": 4,
        "pruning_periods": 2,
        "order": "float_first",
        "start_bits_step": 6,
        "learn_ranges_step": 8,
        "min_bit_wt": 2,
        "max_bit_wt": 8,
        "max_bit_act": 8,
        "bit_reduction": 0,
        "target_bops": 0.05,
        "distillation": 1.0,
        "batch_norm_batches": 2,
    },
}

#: Changes to SMALL: choose bits while training, from the baseline.
QUANTIZED = {
    "compression_optimizer": "geta",
    "hesso_optimizer_cfg": None,
    "geta_optimizer_cfg": {
        "start_from": "baseline",
        "variant": "adamw",
        "lr": 0.01,
        "start_projection_step": 1,
        "projection_steps": 2,
        "projection_periods": 2,
        "max_bit_wt": 8,
        "min_bit_wt": 4,
        "min_bit_act": 8,
        "max_bit_act": 8,
        "start_pruning_step": 3,
        "pruning_steps": 4,
        "pruning_periods": 1,
    },
    "scheduler_cfg.cycle_momentum": False,
}


def small_experiment(root: Path, **trainer_cfg: object) -> Experiment:
    """Return the experiment with its walkers in ``root`` and some keys of trainer_cfg changed."""
    changed = {f"trainer_cfg.{key}": value for key, value in trainer_cfg.items()}
    return load_experiment(None, SMALL | {"data_cfg.dataset_root": str(root)} | changed)


def write_experiment(experiment: Experiment, path: Path) -> Path:
    """Write an experiment as the YAML file that the command line reads."""
    path.write_text(yaml.safe_dump(experiment.sections()))
    return path

"""When the stages of a compression begin, for figures."""

from gaitlib.config import Experiment


def schedule_marks(experiment: Experiment) -> dict[str, int]:
    """Return the first iteration of each of GETA's stages, by name.

    Args:
        experiment: one that quantizes.
    """
    cfg = experiment.compression
    return {
        "warm-up": 0,
        "projection": cfg.start_projection_step,
        "joint": cfg.start_pruning_step,
        "cool-down": cfg.start_pruning_step + cfg.pruning_steps,
    }

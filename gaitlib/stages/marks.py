"""When the stages of a compression begin, for figures."""

from gaitlib.config import Study


def schedule_marks(study: Study) -> dict[str, int]:
    """Return the first iteration of each of GETA's stages, by name.

    Args:
        study: one that quantizes.
    """
    cfg = study.compression
    return {
        "warm-up": 0,
        "projection": cfg.start_projection_step,
        "joint": cfg.start_pruning_step,
        "cool-down": cfg.start_pruning_step + cfg.pruning_steps,
    }

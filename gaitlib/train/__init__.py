"""The training loop, its checkpoints, and how a run continues from one."""

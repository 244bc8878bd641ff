"""How fast the project is, against what a competent user would write: ``python -m benchmarks``."""

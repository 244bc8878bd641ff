"""Speed of the project and of what a competent user would write: ``python -m benchmarks``."""

"""``python -m gaitlib``: the same program as ``gaitlib``."""

from gaitlib.cli import app

app()

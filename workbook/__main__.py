"""``python -m gaitlib``: the same program as ``gaitlib``."""

from workbook.cli import app

app()

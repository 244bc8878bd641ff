"""``python -m workbook``: the same program as ``gaitlib``."""

from workbook.cli import app

app()

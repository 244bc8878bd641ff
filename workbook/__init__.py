"""The desk around `gaitlib`: experiments in YAML, runs on disk, tables, figures, studies, names."""

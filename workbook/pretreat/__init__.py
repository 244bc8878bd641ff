"""Masks as people have them, read and aligned to the silhouettes that `gaitlib.data` reads."""

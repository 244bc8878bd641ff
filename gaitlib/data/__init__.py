"""Silhouettes: from raw frames or synthetic walkers, through the CASIA-B-pkl tree, to batches."""

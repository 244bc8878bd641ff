"""Who is this? Walks from any source, embeddings, a gallery of known people, and names.

``walks`` reads walks from masks, pickles and videos (``background``), ``recogniser`` embeds them
with a compressed network's file, ``private_files`` keeps embeddings, ``gallery`` keeps people and
names a walk, ``accuracy`` counts how often that is right. ``commands`` is the command line.
"""

from workbook.recognise.accuracy import (
    open_set_curve,
    principal_components,
    rank_curve,
    rates,
    trials,
)
from workbook.recognise.gallery import Gallery, new_gallery, read_gallery, threshold_for
from workbook.recognise.private_files import Embeddings, read_embeddings
from workbook.recognise.recogniser import Recogniser
from workbook.recognise.walks import Walk, embed_dataset, embed_walks, find_walks

__all__ = [
    "Embeddings",
    "Gallery",
    "Recogniser",
    "Walk",
    "embed_dataset",
    "embed_walks",
    "find_walks",
    "new_gallery",
    "open_set_curve",
    "principal_components",
    "rank_curve",
    "rates",
    "read_embeddings",
    "read_gallery",
    "threshold_for",
    "trials",
]

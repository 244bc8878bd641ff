"""Who is this? Walks from any source, embeddings, a gallery of known people, and names.

``walks`` reads walks from masks, pickles and videos (``background``), ``recogniser`` embeds them
with a compressed network's file, ``private_files`` keeps embeddings, ``gallery`` keeps people and
names a walk, ``accuracy`` counts how often that is right. ``commands`` is the command line.
"""

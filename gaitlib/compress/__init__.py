"""Compression of a gait network: trace it, train it sparse, cut it small.

``oto.trace`` finds which channels leave together, ``hesso.HESSO`` trains and zeroes them,
``subnet.construct_compressed_model`` writes the network without them. ``quantizer`` rounds weights
and activations to learnable grids while the network trains, and ``geta.GETA`` prunes and chooses
their bits in one run.
"""

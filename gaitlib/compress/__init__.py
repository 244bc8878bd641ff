"""Compression of a gait network: trace it, train it sparse, cut it small.

``oto.trace`` finds which channels leave together, ``hesso.HESSO`` trains and zeroes them,
``subnet.construct_compressed_model`` writes the network without them.
"""

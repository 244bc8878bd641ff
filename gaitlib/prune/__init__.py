"""Which channels a network can lose, and the training that removes them.

``oto.trace`` finds the channels that leave together and returns a `graph.Graph`. `hesso.HESSO` is
the optimizer that chooses channels, shrinks them to zero and keeps them there. ``torch_pruning``
prunes a trained network in one shot, for comparison.
"""

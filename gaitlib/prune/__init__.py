"""Find the channels that can leave a network, and train it without them.

``oto.trace`` finds the groups of channels that leave together and returns a `graph.Graph`.
`hesso.HESSO` is the optimizer that chooses channels, shrinks them to zero and keeps them at zero.
"""

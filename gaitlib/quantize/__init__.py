"""Weights and activations of a few bits: grids, quantizers, and the training that chooses bits.

`grid.Grid` is the set of values that a quantized tensor may take. `quantizer.Quantizer` rounds one
tensor to a learnable grid. `quantization.Quantization` holds all quantizers of a network.
`geta.GETA` prunes channels and chooses bits in one training run. ``ptq`` rounds a network after
its training.
"""

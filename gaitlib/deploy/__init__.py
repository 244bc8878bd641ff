"""From a trained sparse network to the files that other programs load.

``cut_network`` removes the zero channels and proves that nothing changed, ``network_file`` is the
file format of a compressed network, ``onnx_export`` writes ONNX.
"""

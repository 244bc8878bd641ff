"""From a trained sparse network to the files that other programs load.

``cut_network`` removes the zero channels and proves that nothing changed, ``network_file`` is the
one file format of a compressed network, ``state_dict_export`` writes weights alone for other
programs, ``onnx_export`` writes ONNX. ``network_description`` is which network the numbers are of.
"""

"""Walkers: a procedural data set in the layout of CASIA-B or of another set, free of any licence.

A walker's identity lives in body proportions and in motion. View, clothing and bags are nuisances.
The data set exercises every line of code that reads, trains on and plots CASIA-B. It says nothing
about real people.
"""

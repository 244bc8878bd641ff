"""What the machine offers: files, devices, processes, signals and random streams.

Nothing here knows about gait; every other room may use it.
"""

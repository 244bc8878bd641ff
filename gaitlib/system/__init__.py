"""What the machine provides: files, devices, processes, signals and random streams.

Nothing here depends on gait; every other room may use it.
"""

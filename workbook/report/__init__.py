"""Tables of finished runs and studies: measurements, comparisons and a recommendation.

This room reads result files and tables. It trains nothing and draws nothing.
"""

"""Tables about finished runs and studies: what was measured, compared and recommended.

They read result files and tables; they train nothing and draw nothing.
"""

"""Compare two networks: run each, measure the difference of their outputs, and report it.

Imports `errors` alone.
"""

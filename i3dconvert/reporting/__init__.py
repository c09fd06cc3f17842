"""The report, its charts and templates, and the benchmark.

Imports `classification`, `verification`, `export`, and the rooms below them.
"""

"""Read a 2D network by running it, lift what has a 3D counterpart, and fold the rest over frames.

Imports `comparison`, `recipes`, `video`, `weights`, and the files below them.
"""

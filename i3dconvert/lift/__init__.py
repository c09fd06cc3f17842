"""Trace a 2D network once, lift what has a 3D counterpart, and fold the rest over frames."""

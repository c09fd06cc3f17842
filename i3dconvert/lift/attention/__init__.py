"""Softmax attention over the tokens of several frames: finding it in a traced graph, and computing it.

`found.py` finds it, `joint.py` rewrites those that should see other frames, `groups.py` computes them;
`divided.py` is TimeSformer's attention over time at each place.
"""

"""Softmax attention over the tokens of several frames: where it is in a traced graph, and how it is computed.

`found.py` finds it, `joint.py` rewrites what the recipe wants to see other frames, `groups.py` is what then runs;
`divided.py` is TimeSformer's attention over time at each place.
"""

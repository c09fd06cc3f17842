"""The lifted network as a tree of modules like the 2D network's.

`code.py` is a module's computation, `blocks.py` the modules; `cutting.py` makes them from the flat lifted graph, and
`flat.py` makes the flat graph from them.
"""

"""The lifted network as a module tree like the 2D network's own.

`code.py` is what one module computes, `blocks.py` the modules, `cutting.py` makes them of the flat lifted graph, and
`flat.py` the flat graph of them.
"""

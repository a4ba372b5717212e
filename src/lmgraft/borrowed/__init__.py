"""Layers computed by the code of another library, transformers or timm, as frozen blocks.

`block` reaches this room by strings in `registry.BORROWED`, and only for a file whose layers it has no
code of its own for. Everything that another library has to be told is here: how its model is built without
weights, which tensors of a file one layer needs, and how the layer is called so that nothing positional or
causal is left in it.
"""

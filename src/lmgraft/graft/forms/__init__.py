"""One computation, several exact forms of it: what is read decides which is the quickest.

    plan.py    counts the products of every exact plan and chooses
    affine.py  attention's input as an affine map of narrow tokens; norms from a Gram matrix; folds
    attend.py  attention with keys and values formed or absorbed
    cache.py   folds kept between calls
    run.py     the mapper and the block by a plan, and the dense reference beside it

Knows the block and a linear mapper; no host, no reads of a host, no recipe.
"""

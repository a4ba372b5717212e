"""One computation, several exact forms of it: what is read decides which is the quickest.

    problem.py what is to be computed, and what a plan consists of
    cost.py    the products of a plan, counted
    plan.py    all exact plans, and the choice
    affine.py  attention's input as an affine map of narrow tokens; norms from a Gram matrix; folds
    attend.py  attention with keys and values formed or absorbed
    cache.py   folds kept between calls
    approximation.py  when a rounded twin of the block may stand in for it
    run.py     the mapper and the block by a plan, and the dense reference beside it
    compute.py all of these for one graft: which form a call takes, and what is kept for it

Knows the block and a linear mapper; no host, no reads of a host, no recipe.
"""

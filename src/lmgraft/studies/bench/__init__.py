"""What a frozen block costs: plain against grafted, measured side by side.

blocks.py       shapes of LLM blocks as data, and random blocks of those shapes
hosts.py        encoders by name; two that no package here holds are in token_hosts.py
cells.py        what is measured: the grids
memory.py       what a cell will need, and what this machine has
arms.py         one arm of a cell: a model and its step
observe.py      what a graft does in a call, and a graft made to follow a plan
measure.py      arms in turn, in one process; medians, spreads, ratios
results.py      a cell's result, and the file that keeps them
run.py          shapes as cells of the engine, all arms of one in turns in a process of its own
explain.py      for one model: which form was chosen, its counted and its measured cost
"""

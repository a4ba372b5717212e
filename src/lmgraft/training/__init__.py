"""How a task is learnt: optimiser groups, schedule, callbacks, checkpoints, the Trainer.

Lightning runs the loop. Knows tasks and data only by their contracts, no family.
"""

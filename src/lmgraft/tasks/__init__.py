"""What is learnt: loss and metrics, one module or folder a task; they do not know each other.

Optimiser and schedule come in as callables: a task does not know how it is trained.
"""

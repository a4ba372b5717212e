"""Files on disk -> batches. One file a data set, each checked before training.

Every random draw is a function of (seed, epoch, index), so that two runs with one seed see the
same images in the same order with the same augmentation, and a resumed run goes on exactly.
Knows no model and no task.
"""

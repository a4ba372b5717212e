"""A trained model on corrupted and shifted images.

sets.py        ImageNet's published sets, found under one folder by their usual names
cells.py       what is shown: images, how they are corrupted, what is a right answer
run.py         cell by cell, going on where it was interrupted, for runs of lmgraft
timm_model.py  the same for a timm model and a weight file that lmgraft did not train
"""

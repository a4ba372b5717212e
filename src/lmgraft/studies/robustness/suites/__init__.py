"""Suites that know their kind of item, by the names of `registry.SUITES`; the only place here that may.

corruptions.py      any images, corrupted on the fly
imagenet.py         ImageNet's published sets, which imagenet_places.py finds
points.py           any point clouds, corrupted on the fly
timm_model.py       a timm model and a weight file that lmgraft did not train
"""

"""Clips: videos and folders of frames, decoded exactly and sampled by segments; motion clips, made from pictures.

Frames are images, so this room stands on `lmgraft.data.image`, which does not know it.
"""

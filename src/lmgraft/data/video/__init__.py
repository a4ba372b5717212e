"""Clips: videos and folders of frames, decoded exactly and sampled by segments; clips that lmgraft makes itself.

Frames are images, so this room stands on `lmgraft.data.image`, which does not know it.
"""

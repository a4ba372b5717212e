"""Images: files on disk or arrays in memory to batches; the family of image data sets.

Knows no model and no task.
"""

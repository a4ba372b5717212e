"""Image tasks."""

from lmgraft.tasks.image.classification import ImageClassification

__all__ = ["ImageClassification"]

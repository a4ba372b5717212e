"""Encoders that know nothing of grafts, and adapters that describe encoders as `contracts.Host`."""

from lmgraft.versions import check_versions

check_versions("image", "timm", "torchvision")

"""The factory of transformers' image classifiers, in timm's words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lmgraft.errors import HostError

_FIELDS = {"img_size": "image_size", "in_chans": "num_channels"}
"""timm's words for fields of a vision config."""
_TAKES_ANY_SIZE = ("dinov2", "dinov2_with_registers")
"""`model_type`s whose positions fit themselves to the image."""


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """An image classifier by its Hub name or folder, in training mode. Code from the Hub is never run.

    Args:
        name: As for `from_pretrained`: a Hub repository, or a folder with a `config.json`.
        kwargs: `pretrained` (False, as in timm: only the config is taken), `revision`, `num_classes`,
            `img_size`, `in_chans`; anything else is a field of the vision config.

    Raises:
        HostError: If transformers is not installed, has no such classifier, or refuses the arguments;
            if pretrained weights are incomplete, or are for other images than asked for.
    """
    try:
        from transformers import AutoConfig, AutoModelForImageClassification
    except ImportError:
        raise HostError("backbone.factory transformers: it is not installed", "pip install transformers") from None
    options = dict(kwargs)
    pretrained = options.pop("pretrained", False)
    source = {"revision": options.pop("revision", None), "trust_remote_code": False}
    with _explained(name):
        config = AutoConfig.from_pretrained(name, **source)
    _fit(config, options, name, pretrained)
    with _explained(name):
        if not pretrained:
            make: Any = AutoModelForImageClassification.from_config
            model: nn.Module = make(config, trust_remote_code=False)
            return model.train()
        # A classifier of another size is drawn anew; other weights that do not fit are refused below.
        model, info = AutoModelForImageClassification.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True, **source
        )
    found = [*info["missing_keys"], *info["mismatched_keys"]]
    absent = sorted({str(key[0] if isinstance(key, tuple) else key) for key in found})
    absent = [key for key in absent if not key.startswith("classifier.")]
    if absent:
        raise HostError(
            f"{name!r} lacks weights of {type(model).__qualname__}: {', '.join(absent[:3])}",
            "check backbone.name and backbone.kwargs",
        )
    return model.train()


def _fit(config: Any, options: dict[str, Any], name: str, pretrained: bool) -> None:
    """Write `options` into the config, and refuse what it does not know or the weights cannot do."""
    if "num_classes" in options:
        config.num_labels = options.pop("num_classes")
    vision = getattr(config, "vision_config", config)
    wanted = {_FIELDS.get(word, word): value for word, value in options.items()}
    unknown = sorted(field for field in wanted if not hasattr(vision, field))
    if unknown:
        raise HostError(f"the config of {name!r} has no {', '.join(unknown)}", "check backbone.kwargs")
    for field, value in wanted.items():
        own = getattr(vision, field)
        shapes_weights = field == "num_channels" or (field == "image_size" and config.model_type not in _TAKES_ANY_SIZE)
        if not pretrained:
            setattr(vision, field, value)
        elif shapes_weights and value not in (own, (own, own)):
            raise HostError(
                f"{name!r} was pretrained with {field} {own}, not {value}", "give the data that shape, or use timm"
            )
        elif field not in _FIELDS.values():
            setattr(vision, field, value)


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise HostError(f"transformers gives no image classifier {name!r}: {first}", "check backbone.name") from None

"""The factory of transformers' image classifiers, in timm's words."""

from __future__ import annotations

from fnmatch import fnmatch
from functools import partial
from typing import Any

from torch import nn

from lmgraft.backbones.refusals import construct, in_seconds, in_words
from lmgraft.errors import HostError
from lmgraft.versions import needs

_FIELDS = {"img_size": "image_size", "in_chans": "num_channels"}
"""timm's words for fields of a vision config."""
_TAKES_ANY_SIZE = ("dinov2", "dinov2_with_registers")
"""`model_type`s whose positions fit themselves to the image."""

_UNUSED = {
    "PreTrainedModel": ("*.mask_token",),
    "CLIPForImageClassification": ("vision_model.post_layernorm.*", "vision_model.vision_model.post_layernorm.*"),
    "SiglipForImageClassification": ("vision_model.head.*", "vision_model.vision_model.head.*"),
}
"""Class -> parameters, in one version of transformers or another, whose outputs no classifier asks for: tokens
for masked patches, and norm or pooling of what only `pooler_output` holds."""


def create(name: str, kwargs: dict[str, Any]) -> nn.Module:
    """An image classifier by its Hub name or folder, in training mode. Code from the Hub is never run.

    What a classifier never uses does not require gradients.

    Args:
        name: As for `from_pretrained`: a Hub repository, or a folder with a `config.json`.
        kwargs: `pretrained` (False, as in timm: only the config is taken), `revision`, `num_classes`,
            `img_size`, `in_chans`; anything else is a field of the vision config.

    Raises:
        VersionError: If transformers is not installed.
        HostError: If it has no such classifier, or refuses the arguments;
            if pretrained weights are incomplete, or are for other images than asked for.
    """
    with needs("", "backbone.factory=transformers"):
        from transformers import AutoConfig, AutoModelForImageClassification
    options = dict(kwargs)
    pretrained = options.pop("pretrained", False)
    source = {"revision": options.pop("revision", None), "trust_remote_code": False}
    what = f"transformers gives no image classifier {name!r}"
    remedy = "check backbone.name: a repository that can be reached, or a folder with config.json"
    with in_words(what, remedy, pretrained=False), in_seconds(name):
        config = AutoConfig.from_pretrained(name, **source)
    _fit(config, options, name, pretrained)
    if pretrained:
        remedy = (
            "--backbone.kwargs.pretrained false trains from scratch by the config alone; backbone.name may be "
            "a folder with config.json and the weights"
        )
    with in_words(what, remedy, pretrained), in_seconds(name):
        if not pretrained:
            make = partial(AutoModelForImageClassification.from_config, config)
            model: nn.Module = construct(make, f"transformers' {name!r}", {"trust_remote_code": False}, (ValueError,))
            return _without_unused(model).train()
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
    return _without_unused(model).train()


def _without_unused(model: nn.Module) -> nn.Module:
    """`model`, with what its `forward` never uses frozen: DDP waits for every gradient."""
    kinds = [cls.__name__ for cls in type(model).__mro__]
    patterns = [pattern for kind, names in _UNUSED.items() if kind in kinds for pattern in names]
    for name, parameter in model.named_parameters():
        if any(fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad = False
    return model


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

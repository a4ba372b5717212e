"""Names to things, as strings: what is imported is decided by a table, on demand.

A table row is "package.module:attribute". It lets one room find a part of another that it
must not import (a graft its host adapter, a recipe its data set). This room knows no part.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lmgraft.errors import RecipeError
from lmgraft.versions import needs


class Registry:
    """A table of names to "module:attribute" strings; a duplicate name is an error."""

    def __init__(self, kind: str, rows: dict[str, str] | None = None) -> None:
        self.kind = kind
        self._rows = dict(rows or {})

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def names(self) -> list[str]:
        return sorted(self._rows)

    def register(self, name: str, target: str) -> None:
        """Add a row.

        Raises:
            ValueError: If the name is taken by another target.
        """
        if self._rows.setdefault(name, target) != target:
            raise ValueError(f"{self.kind} {name!r} is already registered as {self._rows[name]}")

    def load(self, name: str) -> Any:
        """Import and return what the row of `name` points to."""
        return load_object(self._rows[name])

    def find(self, name: str) -> Any:
        """As `load`, for a name that a person gave.

        Raises:
            RecipeError: If there is no such row; it names the nearest ones.
        """
        if name not in self._rows:
            raise RecipeError(f"there is no {self.kind} {name!r}", suggest(name, self._rows))
        return self.load(name)


def load_object(target: str) -> Any:
    """Import "package.module:attribute"."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A package's `__getattr__` that imports a name from its home, a module, when it is first asked for.

    Args:
        package: The package's `__name__`.
        homes: Public name -> module.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        with needs("image", f"{package}.{name}"):
            value = getattr(importlib.import_module(homes[name]), name)
        setattr(importlib.import_module(package), name, value)
        return value

    return get


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence for an error: the nearest known names, or all of them when few."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"Did you mean {' or '.join(repr(n) for n in near)}?"
    return f"Known: {', '.join(known)}." if len(known) <= 12 else ""


_TIMM, _HF = "timm.models", "transformers.models"
_HF_ADAPTER = "lmgraft.backbones.transformers_vit"

HOSTS = Registry(
    "host adapter",
    {
        f"{_TIMM}.vision_transformer.VisionTransformer": "lmgraft.backbones.timm_vit:describe",
        f"{_TIMM}.deit.VisionTransformerDistilled": "lmgraft.backbones.timm_vit:describe_distilled",
        f"{_TIMM}.eva.Eva": "lmgraft.backbones.timm_vit:describe_eva",
        f"{_TIMM}.beit.Beit": "lmgraft.backbones.timm_vit:describe_beit",
        f"{_TIMM}.swin_transformer.SwinTransformer": "lmgraft.backbones.timm_maps:describe_swin",
        f"{_TIMM}.swin_transformer_v2.SwinTransformerV2": "lmgraft.backbones.timm_maps:describe_swin",
        f"{_TIMM}.resnet.ResNet": "lmgraft.backbones.timm_maps:describe_resnet",
        f"{_TIMM}.convnext.ConvNeXt": "lmgraft.backbones.timm_maps:describe_convnext",
        f"{_TIMM}.efficientnet.EfficientNet": "lmgraft.backbones.timm_maps:describe_efficientnet",
        f"{_TIMM}.mvitv2.MultiScaleVit": "lmgraft.backbones.timm_branches:describe_mvitv2",
        f"{_TIMM}.twins.Twins": "lmgraft.backbones.timm_branches:describe_twins",
        f"{_TIMM}.pit.PoolingVisionTransformer": "lmgraft.backbones.timm_branches:describe_pit",
        f"{_TIMM}.tnt.TNT": "lmgraft.backbones.timm_branches:describe_tnt",
        f"{_TIMM}.crossvit.CrossVit": "lmgraft.backbones.timm_branches:describe_crossvit",
        f"{_TIMM}.coat.CoaT": "lmgraft.backbones.timm_branches:describe_coat",
        f"{_TIMM}.hrnet.HighResolutionNet": "lmgraft.backbones.timm_branches:describe_hrnet",
        f"{_TIMM}.efficientvim.EfficientViM": "lmgraft.backbones.timm_branches:describe_efficientvim",
        f"{_TIMM}.deepseek_vit.DeepseekVitClassifier": "lmgraft.backbones.timm_llm:describe_classifier",
        f"{_TIMM}.deepseek_vit.DeepseekVitEncoder": "lmgraft.backbones.timm_llm:describe_encoder",
        f"{_TIMM}.qwen3_vit.Qwen3VitClassifier": "lmgraft.backbones.timm_llm:describe_classifier",
        f"{_TIMM}.qwen3_vit.Qwen3VitEncoder": "lmgraft.backbones.timm_llm:describe_encoder",
        f"{_TIMM}.gemma4_vit.Gemma4VitClassifier": "lmgraft.backbones.timm_llm:describe_classifier",
        f"{_TIMM}.gemma4_vit.Gemma4VitEncoder": "lmgraft.backbones.timm_llm:describe_encoder",
        f"{_TIMM}.mobilenetv5.MobileNetV5": "lmgraft.backbones.timm_branches:describe_mobilenetv5",
        f"{_TIMM}.mobilenetv5.MobileNetV5Encoder": "lmgraft.backbones.timm_branches:describe_mobilenetv5",
        f"{_TIMM}.cait.Cait": "lmgraft.backbones.timm_maps:describe_late_class_token",
        f"{_TIMM}.xcit.Xcit": "lmgraft.backbones.timm_maps:describe_late_class_token",
        "timm.*": "lmgraft.backbones.timm_maps:describe_any",
        "lmgraft.backbones.video_mae.VideoMAE": "lmgraft.backbones.video_mae:describe",
        "lmgraft.backbones.timm_frames.FrameEncoder": "lmgraft.backbones.timm_frames:describe",
        f"{_HF}.vit.modeling_vit.ViTModel": f"{_HF_ADAPTER}:describe",
        f"{_HF}.vit.modeling_vit.ViTForImageClassification": f"{_HF_ADAPTER}:describe_vit_classifier",
        f"{_HF}.deit.modeling_deit.DeiTModel": f"{_HF_ADAPTER}:describe",
        f"{_HF}.deit.modeling_deit.DeiTForImageClassification": f"{_HF_ADAPTER}:describe_vit_classifier",
        f"{_HF}.dinov2.modeling_dinov2.Dinov2Model": f"{_HF_ADAPTER}:describe",
        f"{_HF}.dinov2.modeling_dinov2.Dinov2ForImageClassification": f"{_HF_ADAPTER}:describe_dinov2_classifier",
        f"{_HF}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersModel": (
            f"{_HF_ADAPTER}:describe"
        ),
        f"{_HF}.dinov2_with_registers.modeling_dinov2_with_registers.Dinov2WithRegistersForImageClassification": (
            f"{_HF_ADAPTER}:describe_dinov2_classifier"
        ),
        f"{_HF}.dinov3_vit.modeling_dinov3_vit.DINOv3ViTModel": f"{_HF_ADAPTER}:describe",
        f"{_HF}.clip.modeling_clip.CLIPVisionModel": f"{_HF_ADAPTER}:describe",
        f"{_HF}.clip.modeling_clip.CLIPVisionModelWithProjection": f"{_HF_ADAPTER}:describe",
        f"{_HF}.clip.modeling_clip.CLIPForImageClassification": f"{_HF_ADAPTER}:describe_clip_classifier",
        f"{_HF}.siglip.modeling_siglip.SiglipVisionModel": f"{_HF_ADAPTER}:describe",
        f"{_HF}.siglip.modeling_siglip.SiglipForImageClassification": f"{_HF_ADAPTER}:describe",
        "torchvision.models.vision_transformer.VisionTransformer": "lmgraft.backbones.torchvision_vit:describe",
        "lmgraft.backbones.point_bert.PointBert": "lmgraft.backbones.point_bert:describe",
        "lmgraft.backbones.meter.Meter": "lmgraft.backbones.meter:describe",
        "lmgraft.backbones.scene_qa.model.SceneQA": "lmgraft.backbones.scene_qa.host:describe",
        "lmgraft.backbones.vectornet.VectorNet": "lmgraft.backbones.vectornet:describe",
        "lmgraft.backbones.mmtransformer.MMTransformer": "lmgraft.backbones.mmtransformer:describe",
    },
)
"""Class path of a backbone -> the function that describes an instance of it as a `Host`.

"package.*" stands for all classes of a package that have no row; its function may return None.
"""


def find_adapter(model: object) -> Callable[[Any], Any] | None:
    """The function of `HOSTS` that describes a model: of its class, its nearest base class, or its package."""
    paths = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(model).__mro__]
    packages = [f"{path.split('.')[0]}.*" for path in paths]
    return next((HOSTS.load(name) for name in [*paths, *packages] if name in HOSTS), None)


_TRANSFORMERS_LAYERS = "lmgraft.borrowed.load"

BORROWED = Registry(
    "lender of layers",
    {
        "transformers:load": f"{_TRANSFORMERS_LAYERS}:load_layers",
        "transformers:inspect": f"{_TRANSFORMERS_LAYERS}:inspect_layers",
        "timm:load": "lmgraft.borrowed.timm_blocks:load_layers",
        "timm:inspect": "lmgraft.borrowed.timm_blocks:inspect_layers",
        "timm:run": "lmgraft.borrowed.runs:open_run",
    },
)
"""Library whose code computes layers that lmgraft has no code for, and what is done -> the function that does it."""

FACTORIES = Registry(
    "model factory",
    {
        "meter": "lmgraft.backbones.meter:create",
        "mmtransformer": "lmgraft.backbones.mmtransformer:create",
        "point_bert": "lmgraft.backbones.point_bert:create",
        "scene_qa": "lmgraft.backbones.scene_qa.create:create",
        "timm": "lmgraft.backbones.timm_vit:create",
        "timm_frames": "lmgraft.backbones.timm_frames:create",
        "torchvision": "lmgraft.backbones.torchvision_vit:create",
        "transformers": "lmgraft.backbones.transformers_create:create",
        "vectornet": "lmgraft.backbones.vectornet:create",
        "videomae": "lmgraft.backbones.video_mae:create",
    },
)
"""Names a saved graft may use to rebuild its backbone; nothing else is ever called."""

DEPTHS: Mapping[str, str] = {"meter": "fusion_layers", "scene_qa": "layers", "vectornet": "global_layers"}
"""Factory -> the argument that makes its encoders deeper, where it is not "depth"."""

SPECS = Registry("library", {"timm": "lmgraft.backbones.timm_spec:find_spec"})
"""Library of a model -> the function that finds out how a factory makes the like of it, or None."""

_CLASSIFICATION = "lmgraft.tasks.classification"
_ANSWERING = "lmgraft.tasks.question_answering"
_FORECASTING = "lmgraft.tasks.forecasting"
_RETRIEVAL = "lmgraft.tasks.retrieval"
_ROOMS = "lmgraft.tasks.scene_questions"

METRICS = Registry(
    "metric",
    {
        "accuracy": f"{_CLASSIFICATION}:ACCURACY",
        "class_mean": f"{_CLASSIFICATION}:CLASS_MEAN",
        "top5": f"{_CLASSIFICATION}:TOP5",
        "nll": f"{_CLASSIFICATION}:NLL",
        "ir1": f"{_RETRIEVAL}:IR1",
        "ir5": f"{_RETRIEVAL}:IR5",
        "ir10": f"{_RETRIEVAL}:IR10",
        "tr1": f"{_RETRIEVAL}:TR1",
        "tr5": f"{_RETRIEVAL}:TR5",
        "tr10": f"{_RETRIEVAL}:TR10",
        "minfde6": f"{_FORECASTING}:MINFDE6",
        "minade6": f"{_FORECASTING}:MINADE6",
        "mr6": f"{_FORECASTING}:MR6",
        "brier_minfde6": f"{_FORECASTING}:BRIER_MINFDE6",
        "minfde1": f"{_FORECASTING}:MINFDE1",
        "minade1": f"{_FORECASTING}:MINADE1",
        "mr1": f"{_FORECASTING}:MR1",
        "brier_minfde1": f"{_FORECASTING}:BRIER_MINFDE1",
        "em1": f"{_ROOMS}:EM1",
        "em10": f"{_ROOMS}:EM10",
        "answer_loss": f"{_ROOMS}:ANSWER_LOSS",
        "map25": f"{_ROOMS}:MAP25",
        "map50": f"{_ROOMS}:MAP50",
        "vqa": f"{_ANSWERING}:VQA",
        "vqa_loss": f"{_ANSWERING}:VQA_LOSS",
    },
)
"""Names of metrics in study files and options -> the `contracts.Metric`; a task of one's own brings its own along."""

FILE_KINDS = Registry(
    "kind of files",
    {
        "captions": "lmgraft.data.vision_language.caption_files:CaptionFiles",
        "coco": "lmgraft.data.image.coco:CocoInstances",
        "imagenet-s": "lmgraft.data.image.mask_folders:ImageNetS",
        "images": "lmgraft.data.image.image_files:ImageFiles",
        "images-with-masks": "lmgraft.data.image.mask_folders:MaskFolders",
        "points": "lmgraft.data.points.cloud_files:CloudFiles",
        "questions": "lmgraft.data.vision_language.question_files:QuestionFiles",
        "scanqa": "lmgraft.data.rooms.scans:ScanQa",
        "scenes": "lmgraft.data.motion.scene_files:SceneFiles",
        "sqa3d": "lmgraft.data.rooms.scans:Sqa3d",
        "videos": "lmgraft.data.video.video_files:VideoFiles",
        "voc": "lmgraft.data.image.voc:PascalVOC",
    },
)
"""What files of one's own are, in commands that take a folder -> the data set that reads them."""

PREPARERS = Registry(
    "preparation",
    {
        "captioned-stamps": "lmgraft.data.vision_language.stamps:prepare",
        "composed-emoji": "lmgraft.data.image.composed_objects:prepare_named",
        "composed-objects": "lmgraft.data.image.composed_objects:prepare",
        "composed-questions": "lmgraft.data.vision_language.composed_questions:prepare",
        "easy-vqa": "lmgraft.data.vision_language.easy_vqa:prepare",
        "emoji-captions": "lmgraft.data.vision_language.emoji_captions:prepare",
        "fashion-mnist": "lmgraft.data.image.fashion_mnist:prepare",
        "furniture": "lmgraft.data.points.furniture:prepare",
        "garments-on-textures": "lmgraft.data.image.composed_objects:prepare_garments",
        "kicad-models": "lmgraft.data.points.kicad:prepare",
        "motion-clips": "lmgraft.data.video.motion_clips:prepare",
        "physics-clips": "lmgraft.data.video.physics_clips:prepare",
        "rooms": "lmgraft.data.rooms.prepare:prepare",
        "sumo": "lmgraft.data.motion.sumo:prepare",
        "toy-imagenet": "lmgraft.data.image.toy:prepare",
    },
)
"""What `lmgraft prepare NAME` makes or fetches -> a function of the folder (None: the cache) that returns its place."""

PICTURES = Registry(
    "picture",
    {
        "images": "lmgraft.report.pictures.images:draw_image",
        "captions": "lmgraft.report.pictures.images:draw_image",
        "questions": "lmgraft.report.pictures.images:draw_image",
        "clouds": "lmgraft.report.pictures.clouds:draw_clouds",
        "clips": "lmgraft.report.pictures.frames:draw_clip",
        "room questions": "lmgraft.report.pictures.rooms:draw_room",
        "scenes": "lmgraft.report.pictures.scenes:draw_scene",
    },
)
"""`Data.things` -> what draws one item with maps over its tokens: (what its task shows, maps, grid, places, truth,
predictions) -> a figure."""

_CLASSIFIER = f"{_CLASSIFICATION}.Classification"

SUITES = Registry(
    "suite",
    {
        "corruptions": "lmgraft.studies.robustness.suites.corruptions:Corruptions",
        "caption-grounding": "lmgraft.studies.robustness.suites.grounding:CaptionGrounding",
        "grounding": "lmgraft.studies.robustness.suites.grounding:Grounding",
        "motion": "lmgraft.studies.robustness.suites.motion:Motion",
        "motion-baselines": "lmgraft.studies.robustness.suites.motion_baselines:MotionBaselines",
        "points-c": "lmgraft.studies.robustness.suites.points:PointCorruptions",
        "room-grounding": "lmgraft.studies.robustness.suites.rooms:RoomGrounding",
        "imagenet-robustness": "lmgraft.studies.robustness.suites.imagenet:ImageNetSets",
    },
)
"""Names of robustness suites in study files and options -> the class, a `studies.robustness.suite.Suite`."""

MOVED = {
    "lmgraft.tasks.image.ImageClassification": _CLASSIFIER,
    "lmgraft.tasks.image.classification.ImageClassification": _CLASSIFIER,
    "lmgraft.data.fashion_mnist.FashionMNIST": "lmgraft.data.image.fashion_mnist.FashionMNIST",
    "lmgraft.data.image_files.ImageFiles": "lmgraft.data.image.image_files.ImageFiles",
    "lmgraft.data.toy.ToyImageNet": "lmgraft.data.image.toy.ToyImageNet",
}
"""Class paths that recipes of earlier versions name -> where the class is now."""

"""How a recipe trains, as plain data: its groups `optim`, `train` and `features`. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lmgraft.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class MomentumConfig:
    """max(start x factor ^ (epoch // every), floor); the defaults are VoteNet's, which SQA3D trains with."""

    start: float = 0.5
    """Weight of a batch in the running means at first (torch's default: 0.1)."""
    factor: float = 0.5
    """What it is multiplied by."""
    every: int = 20
    """After how many epochs."""
    floor: float = 0.001
    """What it does not fall below."""

    def __post_init__(self) -> None:
        for name in ("start", "factor", "floor"):
            if not 0 < getattr(self, name) <= 1:
                raise RecipeError(f"train.batchnorm_momentum.{name}={getattr(self, name)} must be above 0, at most 1")
        if self.every < 1:
            raise RecipeError(f"train.batchnorm_momentum.every={self.every} must be at least 1")

    def at(self, epoch: int) -> float:
        """The momentum in an epoch, counted from 0."""
        return max(self.start * self.factor ** (epoch // self.every), self.floor)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How long, on what, and how often to save."""

    epochs: int = 3
    """Passes over the training items."""
    precision: str = "auto"
    """auto: on a GPU bfloat16 mixed where it has that, else float16 mixed; on a CPU float32. Or any of Lightning's."""
    accelerator: str = "auto"
    """cpu, gpu, ... as Lightning names them."""
    devices: str | int = "auto"
    """How many devices on this machine; each has data.batch_size items a step. auto: all, under torchrun
    as many as it started processes."""
    num_nodes: int = 1
    """How many machines; under torchrun as many as it has."""
    strategy: str = "auto"
    """auto (ddp where there are several devices), ddp, fsdp (torch's fully_shard), or any of Lightning's."""
    compile: bool = False
    """Compile the model by torch.compile; the first steps take longer."""
    deterministic: bool = False
    """Use deterministic kernels where there are such, on a GPU; slower. On a CPU runs repeat anyway."""
    accumulate: int = 1
    """Batches whose gradients are added up before a step."""
    clip_grad: float | None = None
    """Largest gradient norm; None does not clip."""
    clip_value: float | None = None
    """Largest gradient of any one weight, in place of clip_grad; None does not clip."""
    sync_batchnorm: bool = False
    """Batch norms take their means over all processes; on GPUs, with several processes of strategy ddp."""
    batchnorm_momentum: MomentumConfig | None = None
    """Momentum of all batch norms as it falls over epochs (SQA3D); None leaves it as the model has it."""
    ema: float | None = None
    """Decay of a running mean of the weights, saved in checkpoints (DeiT: 0.99996); None keeps none."""
    evaluate_ema: bool = False
    """Validate, choose and test the running mean; by default, as in the paper, the weights themselves."""
    save_every: int = 50
    """Steps between saves of last.ckpt."""
    log_every: int = 10
    """Steps between logged losses."""

    def __post_init__(self) -> None:
        for name in ("epochs", "accumulate", "num_nodes", "save_every", "log_every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("clip_grad", "clip_value"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise RecipeError(
                    f"train.{name}={getattr(self, name)} must be positive", "leave it out for no clipping"
                )
        if self.clip_grad is not None and self.clip_value is not None:
            raise RecipeError(
                f"train.clip_grad={self.clip_grad} clips the norm and train.clip_value={self.clip_value} each weight's "
                "gradient",
                "set one of them to null",
            )
        if self.sync_batchnorm and self.strategy == "fsdp":
            raise RecipeError("train.sync_batchnorm does not work with train.strategy=fsdp", "leave out one of them")
        if self.ema is not None and not 0 < self.ema < 1:
            raise RecipeError(f"train.ema={self.ema} is a decay between 0 and 1", "DeiT has 0.99996")
        if self.evaluate_ema and self.ema is None:
            raise RecipeError("train.evaluate_ema needs a running mean", "give train.ema, for instance 0.99996")
        if self.ema is not None and self.strategy == "fsdp":
            raise RecipeError("train.ema does not work with train.strategy=fsdp", "leave out one of them")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser, its rates by module, and their schedule."""

    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw: decoupled weight decay. adam: weight decay is added to the gradient (L2), as in torch.optim.Adam."""
    lr: float = 1e-3
    """Peak learning rate; for the batch size as given, unless lr_per says otherwise."""
    lr_per: int | None = None
    """Batch size that lr is meant for: lr is multiplied by the items of one step (batch size times
    processes times train.accumulate) / lr_per. DeiT: lr 5e-4 per 512."""
    lr_per_scales_all: bool = False
    """Multiply min_lr and warmup_lr by lr_per's factor too (VideoMAE); DeiT multiplies lr alone."""
    weight_decay: float = 0.05
    """Weight decay; none on vectors, biases, class tokens and positions: what the model's
    no_weight_decay() or its host names."""
    decays: dict[str, float] = field(default_factory=dict)
    """Factors on weight_decay by module or parameter, as in rates, in place of that rule: 0 exempts matrices
    too, 1 decays vectors too."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    schedule: Literal["step", "epoch", "linear", "drops", "constant"] = "step"
    """step: a warm-up from lr / warm-up steps, then a cosine to min_lr, with a rate for each step. linear: a straight
    line to min_lr instead. drops: lr times drop_factor at each of drop_epochs or drop_steps. constant: lr.
    epoch: DeiT's cosine, one rate for each epoch, warm-up from warmup_lr, epochs 0 and 1 alike."""
    decay_epochs: int | None = None
    """Epochs in which the rate falls to min_lr, where that is not the whole run (Point-BERT: 300 of 301)."""
    drop_epochs: list[int] = field(default_factory=list)
    """Epochs, counted from 0, from whose first step on the rate is drop_factor times what it was."""
    drop_steps: list[int] = field(default_factory=list)
    """The same in steps, in place of drop_epochs."""
    drop_factor: float = 0.1
    """Factor of each drop (mmTransformer: 0.25; SQA3D: 0.1)."""
    warmup: float = 0.05
    """Share of all steps in which the rate rises linearly to its peak."""
    warmup_epochs: int | None = None
    """The same in epochs; wins over warmup."""
    warmup_steps: int | None = None
    """The same in steps; wins over warmup."""
    warmup_rise: Literal["from_first", "from_zero", "zero_to_peak"] = "from_first"
    """Rate at step s of w warm-up steps, where the schedule is not by epoch. from_first: lr (s + 1) / w.
    from_zero: lr s / w (METER). zero_to_peak: lr s / (w - 1), the last one at the peak (VideoMAE)."""
    warmup_lr: float = 1e-6
    """Rate at the beginning of the warm-up, where the schedule is by epoch; not multiplied by lr_per's factor."""
    min_lr: float = 1e-5
    """Learning rate at the end of cosine or line; not multiplied by lr_per's factor."""
    layer_decay: float | None = None
    """Factor by which each earlier encoder layer learns slower: the head and the graft at the full rate, the
    last layer at the factor, the embeddings slowest. timm's models group themselves. None for one rate."""
    rates: dict[str, float] = field(default_factory=dict)
    """Factors on the rate by module or parameter, on top of layer_decay: {head: 50, fusion.*: 5}. Keys are names with
    wildcards, where * stands for dots too; of several keys that match, that with most other characters holds."""
    mapper_lr: float = 1.0
    """Short for graft.mapper_* in rates (the paper's METER runs: 10)."""

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "mapper_lr", "drop_factor"):
            if getattr(self, name) <= 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must be positive")
        for name in ("warmup_lr", "min_lr", "weight_decay", "warmup_epochs", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must not be negative")
        for name in ("lr_per", "decay_epochs"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise RecipeError(f"optim.{name}={getattr(self, name)} must be at least 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise RecipeError(f"optim.{name}={getattr(self, name)} is a decay from 0 to below 1")
        if not 0 <= self.warmup < 1:
            raise RecipeError(f"optim.warmup={self.warmup} is a share of all steps, from 0 to below 1")
        for pattern, factor in self.rates.items():
            if factor <= 0:
                raise RecipeError(f"optim.rates: {pattern!r}: {factor} must be positive", "a model freezes what it has")
        for pattern, factor in self.decays.items():
            if factor < 0:
                raise RecipeError(f"optim.decays: {pattern!r}: {factor} must not be negative")
        self._check_schedule()

    def _check_schedule(self) -> None:
        for one, other in (("warmup_epochs", "warmup_steps"), ("drop_epochs", "drop_steps")):
            if getattr(self, one) not in (None, []) and getattr(self, other) not in (None, []):
                raise RecipeError(f"optim.{one} and optim.{other} are both given", "leave out one of them")
        for name in ("drop_epochs", "drop_steps"):
            if any(drop < 1 for drop in getattr(self, name)):
                raise RecipeError(f"optim.{name}={getattr(self, name)}: a drop comes at 1 or later")
        drops = self.drop_epochs or self.drop_steps
        if bool(drops) != (self.schedule == "drops"):
            raise RecipeError(
                f"optim.schedule={self.schedule} and drops at {drops} do not go together",
                "schedule: drops needs optim.drop_epochs or optim.drop_steps, the others have neither",
            )
        if self.schedule == "epoch" and (self.warmup_steps is not None or self.warmup_rise != "from_first"):
            raise RecipeError(
                "optim.schedule=epoch warms up by epochs, from optim.warmup_lr",
                "leave out optim.warmup_steps and optim.warmup_rise",
            )
        if self.schedule == "linear" and self.min_lr > self.lr:
            raise RecipeError(
                f"optim.schedule=linear would rise from optim.lr={self.lr} to optim.min_lr={self.min_lr}",
                "give optim.min_lr, for instance 0",
            )

    def for_batch(self, items: int) -> OptimConfig:
        """With the peak rate that a step of so many items, over all processes, takes; lr_per is spent."""
        if self.lr_per is None:
            return self
        scaled = ("lr", "min_lr", "warmup_lr") if self.lr_per_scales_all else ("lr",)
        rates: dict[str, Any] = {name: getattr(self, name) * items / self.lr_per for name in scaled}
        return replace(self, lr_per=None, **rates)


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """Whether the encoder is frozen too, and its tokens are computed once into a cache on disk."""

    cached: bool = False
    """Freeze the encoder; train mappers and head on its stored tokens."""
    dtype: Literal["float32", "float16"] = "float16"
    """Of the stored tokens; float32 for bit-equal training with and without the cache."""
    views: int = 1
    """Views of each training item under random changes to store; 1 stores it as evaluation sees it."""

    def __post_init__(self) -> None:
        if self.views < 1:
            raise RecipeError(f"features.views={self.views} must be at least 1")

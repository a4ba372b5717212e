"""Made-up studies for the tests of the report: seeded, plain numbers, no training."""

import math
from dataclasses import replace

import numpy as np

from lmgraft.analysis.paired import contrasts
from lmgraft.analysis.student import mean_interval
from lmgraft.analysis.timing import TimeRatio
from lmgraft.analysis.verdict import verdict
from lmgraft.registry import METRICS
from lmgraft.studies.study.results import ArmResult, Band, Breakdown, Cost, StudyResult, worded


def compare(arms, pairs, *, correct=True, margin=0.005, higher_is_better=True):
    """Contrasts between arms, by label, with a made-up interval for the bootstrap's."""
    values = {arm.label: arm.values for arm in arms}
    made = contrasts(values, pairs, margin=margin, higher_is_better=higher_is_better, correct=correct)
    return [replace(c, bootstrap=c.interval and (1.1 * c.interval[0], 1.1 * c.interval[1])) for c in made]


def block(source="qwen2.5-coder-1.5b", layer=27, control=None):
    return {
        "source": source,
        "family": "qwen2",
        "layers": [layer],
        "num_layers": 28,
        "revision": "abc123",
        "control": control and {"kind": control, "seed": 0},
        "digest": f"{len(source) * 1000 + layer:064x}",
    }


def make_arm(label, kind, mean, *, seeds=5, spread=0.002, rng=0, **changes):
    generator = np.random.default_rng([rng, sum(map(ord, label))])
    values = {seed: float(v) for seed, v in enumerate(mean + spread * generator.standard_normal(seeds))}
    has_block = kind not in ("plain", "mlp", "linear")
    arm = ArmResult(
        label=label,
        arm=kind,
        question=f"What about {label}?",
        overrides={},
        values=values,
        mean=float(np.mean(list(values.values()))),
        interval=mean_interval(list(values.values()), 0.95),
        cost=Cost(
            trained_params=800_000 + 300_000 * (kind != "plain"),
            frozen_params=46_797_824 * has_block,
            seconds=312.4 * (1 + 1.6 * has_block),
            peak_memory=int(1.25 * 2**30),
            train_flops=4.4e7 * (1 + 2.1 * has_block + 0.2 * (kind == "mlp")),
            eval_flops=1.5e7,
            time=TimeRatio(basis="runs", ratio=1 + 1.6 * has_block),
        ),
        block=block(control=None if kind == "llm" else kind) if has_block else None,
        position="tail",
        learning_rate=0.001,
        val_values={0.001: {seed: value - 0.003 for seed, value in values.items()}},
    )
    return replace(arm, **changes)


def curves(arms, seeds=5):
    made = {}
    for number, arm in enumerate(arms):
        loss = [
            Band(step=s, mean=m, low=m - w, high=m + w)
            for s, m, w in ((s, 2.3 * math.exp(-s / 300) + 0.4 - 0.01 * number, 0.05) for s in range(50, 1501, 50))
        ]
        accuracy = [
            Band(step=s, mean=a, low=a - 0.008, high=a + 0.008)
            for s, a in ((s, arm.mean - 0.3 * math.exp(-s / 400)) for s in range(300, 1501, 300))
        ]
        made[arm.label] = {"train/loss": loss, "val/accuracy": accuracy}
    return made


CLASSES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CORRUPTIONS = ("gaussian_noise", "shot_noise", "defocus_blur", "fog", "frost", "contrast", "pixelate")


def breakdown(planned, kind, names):
    generator = np.random.default_rng(len(names))
    parts = []
    for c in planned:
        for name in names:
            middle, wide = c.mean + 0.006 * generator.standard_normal(), 0.004 + 0.004 * generator.random()
            interval_ = (middle - wide, middle + wide)
            parts.append(
                Breakdown(
                    kind=kind,
                    name=name,
                    arm=c.arm,
                    reference=c.reference,
                    mean=middle,
                    interval=interval_,
                    metric=METRICS.find("accuracy") if kind == "corruption" else None,
                )
            )
    return parts


def make_study(arms, planned=(), exploratory=(), **changes):
    """A study of these arms; contrasts as they are given."""
    result = StudyResult(
        name="image/fashion_controls",
        question="Does a frozen LLM block help a small ViT, and is it the language?",
        recipe="image/fashion_vit",
        reference="plain",
        metric=METRICS.find("accuracy"),
        margin=0.005,
        confidence=0.95,
        seeds=sorted({seed for arm in arms for seed in arm.values}),
        arms=list(arms),
        contrasts=list(planned),
        exploratory=list(exploratory),
        verdict=[],
        breakdown=breakdown(planned, "class", CLASSES) + breakdown(planned, "corruption", CORRUPTIONS),
        curves=curves(arms),
        test_items=10_000,
        data={"name": "fashion_mnist", "sizes": {"train": 20_000, "val": 5_000, "test": 10_000}, "sha256": {"a": "b"}},
        environment={
            "versions": {"lmgraft": "0.1.0", "torch": "2.14.1", "timm": None},
            "python": "3.11.7",
            "platform": "Linux",
            "cpu_count": 2,
        },
        commits=["0123456789abcdef"],
        config="recipe: image/fashion_vit\narms: [plain, llm]\n",
        recipe_yaml="seed: 0\narm: plain\n",
        missing=[],
        notes=["The host is tiny, so that the block is not cheap beside it."],
        monitor=METRICS.find("accuracy"),
        findings=verdict(list(planned), margin=0.005, arms={arm.label: arm.arm for arm in arms}),
    )
    return worded(replace(result, **changes))


def controls(**changes):
    """plain, llm and five controls."""
    kinds = {
        "plain": 0.902,
        "llm": 0.9085,
        "random_frozen": 0.9075,
        "shuffled": 0.906,
        "spectrum": 0.9065,
        "mlp": 0.899,
        "linear": 0.885,
    }
    arms = [make_arm(kind, kind, mean) for kind, mean in kinds.items()]
    planned = compare(arms, [("llm", "plain"), ("llm", "random_frozen"), ("llm", "mlp")])
    others = compare(
        arms, [(kind, "plain") for kind in ("random_frozen", "shuffled", "spectrum", "mlp", "linear")], correct=False
    )
    return replace(make_study(arms, planned, others), **changes)


def depth(layers=(0, 2, 5, 7, 10, 12, 15, 17, 20, 22, 25, 27), sources=("qwen2.5-coder-1.5b",), seeds=2, **changes):
    """One arm a layer of each LLM, and the plain one."""
    sizes = {"qwen2.5-coder-1.5b": 46_797_824, "smollm2-135m": 3_540_096, "qwen2.5-coder-0.5b": 14_912_384}
    plain = make_arm("plain", "plain", 0.902, seeds=seeds)
    arms = [plain]
    for source in sources:
        for layer in layers:
            label = f"{source.partition('-')[0] if len(sources) > 1 else 'layer'}_{layer}"
            if len(sources) > 1:
                label = f"{source}_{layer}"
            arm = make_arm(label, "llm", 0.903 + 0.0002 * layer, seeds=seeds)
            cost = replace(arm.cost, frozen_params=sizes[source], train_flops=4.4e7 * (1 + 4e-8 * sizes[source]))
            overrides = {"graft.layer": layer, "graft.llm": source}
            arms.append(replace(arm, block=block(source, layer), overrides=overrides, cost=cost))
    planned = compare(arms, [(arm.label, "plain") for arm in arms[1:]])
    return make_study(arms, planned, breakdown=[], **changes)

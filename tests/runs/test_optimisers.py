"""Which parameter has which rate and decay; the optimisers against torch's; what the Trainer is told."""

import copy
from pathlib import Path
from unittest.mock import Mock

import pytest
import timm
import torch
import yaml
from torch import nn

import lmgraft
from lmgraft.errors import RecipeError
from lmgraft.recipes.build import build_task
from lmgraft.recipes.recipe import parse_recipe
from lmgraft.training import fit as fit_module
from lmgraft.training.batchnorm import BatchNormMomentum, MomentumConfig
from lmgraft.training.fit import TrainConfig, fit
from lmgraft.training.optim import OptimConfig, make_optimizer, param_groups_layer_decay
from lmgraft.training.schedule import make_schedule


def grafted(tiny_block):
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=24, depth=3, num_heads=2, num_classes=5)
    return lmgraft.graft(vit, tiny_block)


def rate_of_each(model, config):
    names = {id(p): n for n, p in model.named_parameters()}
    groups = make_optimizer(model, config).param_groups
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


@pytest.mark.parametrize("faster", [{"mapper_lr": 10}, {"rates": {"graft.mapper_*": 10}}])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_mappers_have_their_own_rate_and_all_else_its_own(tiny_block, layer_decay, faster):
    model = grafted(tiny_block)
    plain = rate_of_each(model, OptimConfig(layer_decay=layer_decay))
    faster = rate_of_each(model, OptimConfig(layer_decay=layer_decay, **faster))
    assert plain.keys() == faster.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    mappers = {n for n in plain if n.startswith("graft.mapper_")}
    assert len(mappers) == 2
    for name, (lr, decay) in plain.items():
        assert faster[name] == (pytest.approx(lr * (10 if name in mappers else 1), rel=1e-12), decay)


def test_layer_decay_is_timm_s(tiny_block):
    model = grafted(tiny_block)
    oracle = param_groups_layer_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay(), layer_decay=0.7)
    names = {id(p): n for n, p in model.named_parameters()}
    expected = {names[id(p)]: 1e-3 * group["lr_scale"] for group in oracle for p in group["params"]}
    found = {n: lr for n, (lr, _) in rate_of_each(model, OptimConfig(layer_decay=0.7)).items()}
    assert found == pytest.approx(expected)


def test_epsilon_reaches_the_optimiser(tiny_block):
    assert make_optimizer(grafted(tiny_block), OptimConfig(eps=1e-6)).defaults["eps"] == 1e-6


class Fused(nn.Module):
    """The parts of METER that its rates and decays name."""

    def __init__(self):
        super().__init__()
        self.vision = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.fusion = nn.ModuleList(nn.Linear(4, 4) for _ in range(11))
        self.head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


METER = {"head": 50.0, "fusion": 5.0}


def test_a_pattern_means_a_module_with_all_in_it_or_a_parameter():
    found = rate_of_each(Fused(), OptimConfig(lr=1e-6, rates=METER | {"fusion.1": 2.0, "head.*.bias": 7.0}))
    factors = {name: round(lr * 1e6) for name, (lr, _) in found.items()}
    assert all(factor == 1 for name, factor in factors.items() if name.startswith("vision"))
    for name in ("head.0", "head.1"):
        assert (factors[f"{name}.weight"], factors[f"{name}.bias"]) == (50, 7)
    assert [factors[f"fusion.{k}.weight"] for k in (0, 1, 10)] == [5, 2, 5]  # fusion.1 is not fusion.10


def test_rates_do_not_depend_on_the_order_of_patterns():
    rates = {"*": 2.0, "head": 3.0, "head.1": 4.0, "*.bias": 5.0}
    backwards = dict(reversed(list(rates.items())))
    assert rate_of_each(Fused(), OptimConfig(rates=rates)) == rate_of_each(Fused(), OptimConfig(rates=backwards))


def test_rates_decays_and_layers_compose(tiny_block):
    """Each factor multiplies what layer_decay gives; decays change no rate."""
    model = grafted(tiny_block)
    plain = rate_of_each(model, OptimConfig(layer_decay=0.7))
    rates = {"head": 50.0, "blocks.1": 5.0}
    decays = {"graft.mapper_*": 0.0, "norm": 1.0, "blocks.0.attn": 2.0}
    config = OptimConfig(layer_decay=0.7, mapper_lr=10, rates=rates, decays=decays)
    found = rate_of_each(model, config)
    for name, (lr, decay) in plain.items():
        top, block = name.split(".")[0], ".".join(name.split(".")[:2])
        factor = {"head": 50, "blocks.1": 5, "graft.mapper_in": 10, "graft.mapper_out": 10}.get(
            block if top in ("blocks", "graft") else top, 1
        )
        share = 0 if top == "graft" else 1 if top == "norm" else 2 if name.startswith("blocks.0.attn") else None
        assert found[name] == (pytest.approx(lr * factor, rel=1e-12), decay if share is None else 0.05 * share)


def test_groups_of_old_recipes_keep_their_order(tiny_block):
    """An optimiser's state is restored by position: first what was there, then the mappers, group by group."""
    model = grafted(tiny_block)
    names = {id(p): n for n, p in model.named_parameters()}
    plain, faster = (
        [[names[id(p)] for p in group["params"]] for group in make_optimizer(model, config).param_groups]
        for config in (OptimConfig(layer_decay=0.7), OptimConfig(layer_decay=0.7, mapper_lr=10))
    )
    expected = []
    for group in plain:
        inside = [name for name in group if name.startswith("graft.mapper_")]
        expected += [part for part in ([n for n in group if n not in inside], inside) if part]
    assert faster == expected


class PointTokens(nn.Module):
    """Names and shapes of Point-BERT's classifier."""

    def __init__(self):
        super().__init__()
        convs = {f"{name}_conv": nn.Sequential(nn.Conv1d(3, 4, 1), nn.BatchNorm1d(4)) for name in ("first", "second")}
        self.encoder = nn.ModuleDict(convs)
        self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(1, 1, 4)) for _ in range(2))
        self.blocks = nn.ModuleList(nn.ModuleDict({"norm1": nn.LayerNorm(4), "proj": nn.Linear(4, 4)}) for _ in "ab")
        self.norm = nn.LayerNorm(4)
        self.cls_head_finetune = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 2))
        self.graft = nn.ModuleDict(
            {"mapper_in": nn.Linear(4, 4, bias=False), "mapper_out": nn.Linear(4, 4, bias=False)}
        )


def test_the_groups_of_the_published_point_clouds_are_a_recipe():
    """PROTOCOLS 2a: vectors, biases and tokens 5e-5 without decay; mappers 2.5e-4 without; all else 5e-4, 0.05."""
    model = PointTokens()
    slow = dict.fromkeys(("*.bias", "*norm*", "encoder.*_conv.1", "*token*"), 0.1)
    decays = {"*token*": 0.0, "graft.mapper_*": 0.0}
    found = rate_of_each(model, OptimConfig(lr=5e-4, rates=slow | {"graft.mapper_*": 0.5}, decays=decays))
    for name, p in model.named_parameters():
        if name.startswith("graft."):
            expected = (2.5e-4, 0.0)
        elif p.dim() == 1 or name.endswith(".bias") or "token" in name:
            expected = (5e-5, 0.0)
        else:
            expected = (5e-4, 0.05)
        assert found[name] == pytest.approx(expected), name


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"rates": {"haed": 2.0}}, (r"optim\.rates", "'haed'", "'head'")),
        ({"decays": {"fusion.12": 0.0}}, (r"optim\.decays", r"'fusion\.12'", r"'fusion\.1")),
        ({"rates": {"zzz*": 2.0}}, (r"optim\.rates", r"'zzz\*'", "fusion, head, vision")),
        ({"rates": {"head.0*": 2.0, "*head.0": 3.0}}, (r"optim\.rates", r"'head\.0\*'", r"'\*head\.0'", r"head\.0\.")),
    ],
)
def test_a_pattern_that_cannot_be_names_itself_and_the_nearest(options, parts):
    with pytest.raises(RecipeError) as caught:
        make_optimizer(Fused(), OptimConfig(**options))
    for part in parts:
        assert caught.match(part)


def test_patterns_of_a_graft_are_no_mistake_in_the_plain_arm(make_recipe):
    overrides = ("--optim.rates={graft.mapper_*: 3, head: 2e0}", "--optim.decays={graft.mapper_in: 0}", "--arm")
    tasks = {arm: build_task(make_recipe(*overrides, arm)) for arm in ("plain", "llm")}
    for arm, task in tasks.items():
        found = {name: lr for name, (lr, _) in rate_of_each(task.model, make_recipe(*overrides, arm).optim).items()}
        assert found["head.weight"] == 2 * 0.003
        assert found.get("graft.mapper_in.weight") == (None if arm == "plain" else pytest.approx(3 * 0.003))
    with pytest.raises(RecipeError, match=r"graft\.maper"):
        build_task(make_recipe("--optim.rates={graft.maper_in: 3}"))


def test_mapper_lr_and_the_same_pattern_are_one_setting_too_many(tiny_block):
    model = grafted(tiny_block)
    with pytest.raises(RecipeError, match=r"optim\.mapper_lr=10.*graft\.mapper_\*"):
        make_optimizer(model, OptimConfig(mapper_lr=10, rates={"graft.mapper_*": 5.0}))
    found = rate_of_each(model, OptimConfig(lr=1.0, mapper_lr=10, rates={"*": 3.0, "graft.mapper_in": 5.0}))
    assert [found[f"graft.mapper_{which}.weight"][0] for which in ("in", "out")] == [5, 10]


def test_the_rates_of_a_frozen_encoder_s_tokens_are_those_of_its_recipe(make_recipe):
    """The task's model begins at stored tokens; its recipe names the parts of the whole one."""
    task = build_task(make_recipe("--features.cached=true", "--optim.mapper_lr=10", "--optim.rates={head: 2}"))
    groups = task._optimizer(task.model).param_groups
    assert sorted({round(group["lr"] / 0.003) for group in groups}) == [2, 10]


@pytest.mark.parametrize(("name", "oracle"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_steps_are_torch_s(name, oracle):
    """With decay on all of it, as SQA3D's Adam has: L2 in the gradient for adam, apart from it for adamw."""
    mine = Fused()
    theirs = copy.deepcopy(mine)
    config = OptimConfig(optimizer=name, lr=1e-2, weight_decay=0.1, beta2=0.98, decays={"*": 1.0})
    optimizers = [make_optimizer(mine, config)]
    optimizers.append(oracle(theirs.parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.98)))
    assert type(optimizers[0]) is oracle
    for step in range(4):
        for model, optimizer in zip((mine, theirs), optimizers, strict=True):
            generator = torch.Generator().manual_seed(step)
            for p in dict(model.named_parameters()).values():
                p.grad = torch.randn(p.shape, generator=generator)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(mine.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (None, "norm", False)),
        ({"clip_grad": 10.0}, (10.0, "norm", False)),
        ({"clip_value": 1.0, "sync_batchnorm": True}, (1.0, "value", True)),
    ],
)
def test_what_lightning_is_told(monkeypatch, tmp_path, options, expected):
    class Told(Exception):  # noqa: N818 - it ends the test
        pass

    trainer = Mock(side_effect=Told)
    monkeypatch.setattr(fit_module, "Trainer", trainer)
    with pytest.raises(Told):
        fit(Mock(), Mock(), tmp_path / "run", TrainConfig(**options), seed=0, block_digest=None)
    names = ("gradient_clip_val", "gradient_clip_algorithm", "sync_batchnorm")
    assert tuple(trainer.call_args.kwargs[name] for name in names) == expected


def test_batch_norms_over_processes_are_refused_on_cpus():
    trainer = Mock(world_size=2)
    trainer.strategy.root_device = torch.device("cpu")
    fit_module._check_processes(trainer, TrainConfig())
    with pytest.raises(RecipeError, match=r"train\.sync_batchnorm"):
        fit_module._check_processes(trainer, TrainConfig(sync_batchnorm=True))


def test_the_momentum_of_batch_norms_is_votenet_s():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.BatchNorm2d(3)), nn.SyncBatchNorm(3), nn.LayerNorm(3))
    callback, seen = BatchNormMomentum(MomentumConfig()), []
    for epoch in (0, 19, 20, 29, 40, 400):
        trainer = Mock(current_epoch=epoch)
        for hook in (callback.on_train_start, callback.on_train_epoch_start):  # the first alone within an epoch
            model[0].momentum = 0.1
            hook(trainer, model)
            assert model[0].momentum == model[1][0].momentum == model[2].momentum
        seen.append(model[0].momentum)
    assert seen == [max(0.5 * 0.5 ** int(epoch / 20), 0.001) for epoch in (0, 19, 20, 29, 40, 400)]


def test_the_settings_of_other_papers_are_recipes(make_recipe):
    page = Path(__file__).parents[2].joinpath("docs", "training.md").read_text()
    block = page.partition("### What other papers train with")[2].partition("```yaml")[2].partition("```")[0]
    settings, base = yaml.safe_load(block), yaml.safe_load(make_recipe().yaml)
    assert len(settings) == 9
    for keys in settings.values():
        config, epochs = OptimConfig(**keys["optim"]), TrainConfig(**keys["train"]).epochs
        make_schedule(torch.optim.SGD([torch.zeros(1)]), 3 * epochs, config, epochs=epochs)
    keys = settings["questions on scenes, published code (SQA3D)"]  # lists, factors by pattern and a nested part
    recipe = parse_recipe(parse_recipe(yaml.safe_dump(base | keys)).yaml)
    assert recipe.optim == OptimConfig(**keys["optim"])
    assert recipe.train.batchnorm_momentum == MomentumConfig()


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"clip_value": 0.0}, r"train\.clip_value"),
        ({"clip_value": 1.0, "clip_grad": 1.0}, r"train\.clip_grad=1\.0 .*train\.clip_value=1\.0"),
        ({"sync_batchnorm": True, "strategy": "fsdp"}, r"train\.sync_batchnorm.*train\.strategy"),
    ],
)
def test_a_mistake_in_training_names_its_keys(options, key):
    with pytest.raises(RecipeError, match=key):
        TrainConfig(**options)


@pytest.mark.parametrize(("key", "value"), [("start", 0.0), ("factor", 2.0), ("every", 0), ("floor", -1.0)])
def test_a_mistake_in_the_momentum_names_its_key(key, value):
    with pytest.raises(RecipeError, match=rf"train\.batchnorm_momentum\.{key}"):
        MomentumConfig(**{key: value})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr_per", 0),
        ("eps", 0.0),
        ("mapper_lr", -1.0),
        ("warmup_lr", -1e-6),
        ("min_lr", -1.0),
        ("warmup_epochs", -1),
        ("warmup_steps", -1),
        ("decay_epochs", 0),
        ("drop_factor", 0.0),
    ],
)
def test_a_mistake_names_the_key(key, value):
    with pytest.raises(RecipeError, match=rf"optim\.{key}"):
        OptimConfig(**{key: value})


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"rates": {"head": 0.0}}, (r"optim\.rates", "'head'")),
        ({"decays": {"head": -1.0}}, (r"optim\.decays", "'head'")),
        ({"warmup_steps": 3, "warmup_epochs": 1}, (r"optim\.warmup_steps", r"optim\.warmup_epochs")),
        ({"schedule": "drops", "drop_steps": [3], "drop_epochs": [1]}, (r"optim\.drop_steps", r"optim\.drop_epochs")),
        ({"schedule": "drops", "drop_epochs": [0]}, (r"optim\.drop_epochs",)),
        ({"schedule": "drops"}, (r"optim\.schedule=drops", r"optim\.drop_epochs")),
        ({"schedule": "linear", "drop_steps": [3]}, (r"optim\.schedule=linear", r"optim\.drop_steps")),
        ({"schedule": "epoch", "warmup_steps": 3}, (r"optim\.schedule=epoch", r"optim\.warmup_steps")),
        ({"schedule": "epoch", "warmup_rise": "from_zero"}, (r"optim\.schedule=epoch", r"optim\.warmup_rise")),
        ({"schedule": "linear", "lr": 5e-6}, (r"optim\.schedule=linear", r"optim\.min_lr")),
    ],
)
def test_keys_that_contradict_each_other_are_named(options, keys):
    with pytest.raises(RecipeError) as caught:
        OptimConfig(**options)
    for key in keys:
        assert caught.match(key)

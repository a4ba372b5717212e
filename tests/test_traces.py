"""`torch.jit.trace` and the older ONNX exporter on grafted models: the program computes what the model does."""

from __future__ import annotations

import io
import itertools
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import lmgraft
from lmgraft.block import FrozenBlock
from lmgraft.block.opaque import block_of
from lmgraft.graft.layer import baked
from tiny import images, long_but, make_vit, random_block, relative_error
from tiny_hosts import make_host, pictures

pytestmark = pytest.mark.filterwarnings("ignore")  # of exporters that torch calls deprecated, and their tracers

OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Traits of the block, of the host, and of the graft.
    "token": ({}, {}, {}),
    "mean": ({"norm": "layer", "norm_bias": True, "bias": True}, {"global_pool": "avg"}, {"residual": "in"}),
    "read_token": ({"layers": 2}, {}, {"read_token": True}),
    "slice": ({"logit_softcap": 5.0}, {"global_pool": "avg"}, {"reads": slice(1, None)}),
}
FORMS = ("auto", "dense", "reads", "folded", "absorbed")


def graft(case: str, form: str = "auto") -> nn.Module:
    block, host, options = OPTIONS[case]
    return lmgraft.graft(make_vit(depth=1, **host), random_block(**block), form=form, **options)


def traced(model: nn.Module, x: Tensor) -> Any:
    """The program; lmgraft's own code adds no warning of the tracer."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        program = torch.jit.trace(model, x, check_trace=False)
    assert not [warning for warning in seen if "lmgraft" in Path(warning.filename).parts]
    return program


@pytest.fixture(autouse=True)
def _run_without_optimising() -> Iterator[None]:
    with torch.jit.optimized_execution(False):
        yield


@pytest.mark.parametrize(
    ("case", "form"),
    long_but(itertools.product(OPTIONS, FORMS), *((case, "auto") for case in OPTIONS), *(("mean", f) for f in FORMS)),
)
def test_jit_traces_compute_what_the_model_does(case: str, form: str) -> None:
    model = graft(case, form).double()
    program = traced(model, images(2, dtype=torch.float64))
    other = images(5, seed=3, dtype=torch.float64)
    assert relative_error(program(other), model(other)) < 1e-10


def encoder_layer() -> FrozenBlock:
    torch.manual_seed(3)
    return block_of(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), dim=32)


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_block(num_experts=4, experts_per_token=1),
        lambda: random_block(dtype=torch.bfloat16, dim=1024, mlp_dim=1100),
        lambda: random_block(dim=1024, mlp_dim=1100),
        encoder_layer,
    ],
    ids=["experts that the example did not choose", "16 bits", "few rows", "foreign code"],
)
def test_what_is_done_otherwise_in_eager_mode(make: Callable[[], FrozenBlock]) -> None:
    model = lmgraft.graft(make_vit(depth=1, global_pool="avg"), make())
    file = io.BytesIO()
    torch.jit.save(traced(model, images(1)), file)
    file.seek(0)
    other = images(5, seed=3)
    assert relative_error(torch.jit.load(file)(other), model(other)) < 1e-5


def test_a_trace_follows_weights_that_are_loaded_later_and_baked_folds_do_not() -> None:
    model = graft("token", "folded").requires_grad_(False)
    x = images()
    with torch.no_grad():
        program = traced(model, x)
        with baked(model):
            constant = traced(model, x)
        before = model(x)
        model.graft.mapper_in.weight[:, ::2].neg_()
        assert relative_error(program(x), model(x)) < 1e-5
        assert relative_error(model(x), before) > 1e-2
        assert relative_error(constant(x), model(x)) > 1e-3


def test_hosts_whose_layers_return_more_than_tokens() -> None:
    model = lmgraft.graft(make_host("pit"), random_block())
    assert relative_error(traced(model, pictures("pit"))(pictures("pit", 3)), model(pictures("pit", 3))) < 1e-5


@pytest.mark.parametrize(("form", "case"), [("auto", "token"), ("folded", "mean"), ("absorbed", "read_token")])
def test_the_older_onnx_exporter(form: str, case: str) -> None:
    model = graft(case, form)
    file = io.BytesIO()
    axes = {"x": {0: "batch"}}
    torch.onnx.export(model, (images(1),), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    other = images(3, seed=3)
    (got,) = session.run(None, {"x": other.numpy()})
    assert relative_error(torch.from_numpy(got), model(other)) < 1e-5

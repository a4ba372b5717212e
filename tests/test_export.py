"""Exported programs compute what the model computes, hold no more than that needs, and are whole or absent."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

pytest.importorskip("onnxruntime")
import onnx
import onnxruntime
from onnx import numpy_helper

import lmgraft
import padded_host
from lmgraft.cli.main import main
from lmgraft.errors import ExportError, VersionError
from lmgraft.graft.export import TOLERANCE, ExportReport, compare, export_onnx, export_program, export_torch, onnx_file
from lmgraft.graft.layer import baked
from lmgraft.graft.save import save_model
from lmgraft.recipes import build_model
from lmgraft.recipes.recipe import parse_recipe
from tiny import images, long_but, make_vit, random_block, relative_error

WIDE = {"dim": 256, "mlp_dim": 64}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # Traits of the block, of the host, and of the graft.
    "token": ({}, {}, {}),
    "avg_layer_norm": (
        {"norm": "layer", "norm_bias": True, "bias": True},
        {"global_pool": "avg"},
        {"residual": "out"},
    ),
    "layer_norm_without_biases": ({"norm": "layer", "norm_bias": True}, {}, {}),
    "stack": ({"layers": 2}, {}, {"residual": "in"}),
    "read_token": ({}, {"global_pool": "avg"}, {"read_token": True}),
    "middle": ({"qk_norm": "per_head"}, {}, {"at": "middle"}),
    "stored_in_16_bits": ({"dtype": torch.bfloat16}, {}, {}),
}
FOLDED = [f"graft.block.layers.0.attention.{name}.weight" for name in "qkv"]
X = images()


def make(case: str = "token") -> nn.Module:
    block, host, options = CASES[case]
    return lmgraft.graft(make_vit(**{"depth": 1, **host}), random_block(**(WIDE | block)), **options)


def run_onnx(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (out,) = session.run(["output"], {"input": x.numpy()})
    return torch.from_numpy(out)


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def assert_good(report: ExportReport, model: nn.Module, tolerance: float) -> None:
    assert [(c.inputs, c.batch) for c in report.checks] == [("example", 2), ("random", 1), ("random", 3)]
    assert all(c.relative_error <= tolerance for c in report.checks)
    assert report.inputs == (("batch", 3, 32, 32),)
    assert set(FOLDED) <= report.left_out.keys()
    assert all(name.startswith("graft.block.layers.0.attention") for name in report.left_out)
    # Every number is accounted for: what the model holds is in the program or left out of it.
    held = sum(p.nbytes for p in model.parameters())
    folds = report.contents["folds and constants"]
    assert folds > 0
    assert sum(report.contents.values()) - folds + sum(report.left_out.values()) == held


def no_path_in(data: bytes) -> bool:
    here = [Path(timm.__file__).parent.parent, Path(lmgraft.__file__).parent, Path(__file__).parent]
    return not any(text in data for text in (b"site-packages", *(str(path).encode() for path in here)))


class TestTorch:
    @pytest.mark.parametrize("case", long_but(CASES, "token"))
    def test_round_trip(self, case: str, tmp_path: Path) -> None:
        model = make(case)
        report = export_torch(model, X, tmp_path / "model.pt2")
        assert_good(report, model, 1e-5)
        assert report.files == {"model.pt2": (tmp_path / "model.pt2").stat().st_size}
        assert names_in(tmp_path) == ["model.pt2"]
        loaded = torch.export.load(tmp_path / "model.pt2")
        assert not set(FOLDED) & loaded.state_dict.keys()
        for batch in (1, 2, 5):
            assert relative_error(loaded.module()(images(batch)), model(images(batch))) <= 1e-5
        size = sum(report.contents.values())
        assert size < report.files["model.pt2"] < size + 400_000
        assert no_path_in((tmp_path / "model.pt2").read_bytes())

    def test_one_batch_size_only(self, tmp_path: Path) -> None:
        report = export_torch(make(), X, tmp_path / "model.pt2", dynamic_batch=False)
        assert report.inputs == ((2, 3, 32, 32),)
        assert [(c.inputs, c.batch) for c in report.checks] == [("example", 2), ("random", 2)]

    def test_an_example_of_one(self) -> None:
        model = make()
        program = export_program(model, images(1))
        for batch in (1, 4):
            assert relative_error(program.module()(images(batch)), model(images(batch))) <= 1e-5

    def test_name(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"does not end in \.pt2"):
            export_torch(make(), X, tmp_path / "model.onnx")


class TestOnnx:
    @pytest.mark.parametrize("case", long_but(CASES, "avg_layer_norm"))
    def test_onnxruntime(self, case: str, tmp_path: Path) -> None:
        model, path = make(case), tmp_path / "model.onnx"
        report = export_onnx(model, X, path)
        assert_good(report, model, 1e-4)
        assert report.files == {"model.onnx": path.stat().st_size}
        assert names_in(tmp_path) == ["model.onnx"]
        onnx.checker.check_model(path, full_check=True)
        for batch in (1, 5):
            assert relative_error(run_onnx(path, images(batch)), model(images(batch))) <= 1e-4
        assert no_path_in(path.read_bytes())
        self.check_initialisers(model, report, onnx.load(path))

    def check_initialisers(self, model: nn.Module, report: ExportReport, file: onnx.ModelProto) -> None:
        """By value: the exporter renames and transposes. The numbers weigh what the report says."""
        arrays = [numpy_helper.to_array(initializer) for initializer in file.graph.initializer]
        held = {self.fingerprint(array) for array in arrays}
        attention = model.graft.block.layers[0].attention
        for name, inside in {"q": False, "k": False, "v": False, "o": True}.items():
            weight = getattr(attention, name).weight
            assert (self.fingerprint(weight.float().numpy()) in held) == inside, name
        size, least = sum(array.nbytes for array in arrays), sum(report.contents.values())
        # Apart from numbers: shapes and scalars of the graph.
        assert least <= size + 64
        assert size <= least + 4_000

    def fingerprint(self, array: np.ndarray) -> tuple[int, float]:
        return array.size, float(np.round(np.abs(array.astype(np.float64)).sum(), 6))

    @pytest.mark.long
    def test_without_folds_it_is_larger(self, tmp_path: Path) -> None:
        folded, dense = make(), lmgraft.graft(make_vit(depth=1), random_block(**WIDE), form="dense")
        small = export_onnx(folded, X, tmp_path / "folded.onnx")
        large = export_onnx(dense, X, tmp_path / "dense.onnx")
        assert not large.left_out
        saved = sum(small.left_out.values()) - small.contents["folds and constants"]
        assert saved > 40_000
        difference = large.files["dense.onnx"] - small.files["folded.onnx"]
        assert abs(difference - saved) < 0.5 * saved

    @pytest.mark.long
    def test_large_tensors_lie_beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model, path = make(), tmp_path / "model.onnx"
        path.write_bytes(b"an older one")
        monkeypatch.setattr(onnx_file, "LARGEST_IN_ONE_FILE", 0)
        report = export_onnx(model, X, path)
        assert report.files.keys() == {"model.onnx", "model.onnx.data"}
        assert names_in(tmp_path) == ["model.onnx", "model.onnx.data"]
        assert report.files["model.onnx.data"] > 0.9 * sum(report.contents.values())
        assert relative_error(run_onnx(path, X), model(X)) <= 1e-4

    def test_several_inputs_and_outputs(self, tmp_path: Path) -> None:
        model = lmgraft.graft(Scaled(), random_block(**WIDE), at="body", host_spec={"embed_dim": 48})
        example = (torch.randn(2, 5, 48), torch.tensor([1, 2]))
        report = export_onnx(model, example, tmp_path / "model.onnx")
        assert report.inputs == (("batch", 5, 48), ("batch",))
        session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
        found = session.run(None, {"input_0": example[0].numpy(), "input_1": example[1].numpy()})
        assert [o.name for o in session.get_outputs()] == ["output_0", "output_1"]
        for array, tensor in zip(found, model(*example).values(), strict=True):
            assert relative_error(torch.from_numpy(array), tensor) <= 1e-4


class Scaled(nn.Module):
    """A host that lmgraft does not know, with a dictionary for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(48, 48), nn.Linear(48, 3)

    def forward(self, x: Tensor, factor: Tensor) -> dict[str, Tensor]:
        tokens = self.body(x) * factor.view(-1, 1, 1)
        return {"logits": self.head(tokens.mean(1)), "tokens": tokens}


class TestTheModel:
    def test_stays_as_it_is(self) -> None:
        model = make("avg_layer_norm").train()
        model.blocks[0].attn.eval()  # modes need not be the same everywhere
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        trained, places = (
            [p.requires_grad for p in model.parameters()],
            [p.data_ptr() for p in model.parameters()],
        )
        model(X).square().sum().backward()
        gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        export_program(model, X)
        assert [m.training for m in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == trained
        assert [p.data_ptr() for p in model.parameters()] == places
        assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
        assert all(torch.equal(p.grad, gradients[n]) for n, p in model.named_parameters() if p.grad is not None)
        assert model.graft.compute.baked is None
        assert model.graft.read_state.traced is None
        assert torch.is_grad_enabled()
        model.zero_grad()
        model(X).square().sum().backward()
        assert all(relative_error(p.grad, gradients[n]) <= 1e-6 for n, p in model.named_parameters() if n in gradients)

    def test_what_is_trained_later_does_not_reach_the_program(self) -> None:
        """Its folds would belong to another mapper. The frozen block is shared, not copied."""
        model = make()
        expected = model(X)
        program = export_program(model, X)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data.mul_(1.5)
        assert relative_error(program.module()(X), expected) <= 1e-5
        name = "graft.block.layers.0.mlp.up.weight"
        assert program.state_dict[name].data_ptr() == model.graft.block.layers[0].mlp.up.weight.data_ptr()

    def test_exported_inside_baked_and_behind_a_wrapper(self) -> None:
        model = make()
        with baked(model):
            program = export_program(torch.compile(model, backend="eager"), X)
            assert model.graft.compute.baked is not None
        assert relative_error(program.module()(X), model(X)) <= 1e-5

    @pytest.mark.parametrize(("pool", "pinned", "rows"), [("token", False, 1), ("token", True, 17), ("avg", False, 17)])
    def test_what_is_read_is_asked_now(self, pool: str, pinned: bool, rows: int) -> None:
        model = make()
        model.reset_classifier(7, global_pool=pool)
        if pinned:
            with lmgraft.reading_all_tokens(model):
                program = export_program(model, X, dynamic_batch=False)
        else:
            program = export_program(model, X, dynamic_batch=False)
        shapes = {tuple(v.shape) for n in program.graph.nodes if isinstance(v := n.meta.get("val"), Tensor)}
        assert {shape for shape in shapes if shape[-1:] == (256,) and len(shape) == 3} == {(2, rows, 256)}
        assert relative_error(program.module()(X), model(X)) <= 1e-5


@pytest.fixture
def padded_run(llama_folder: Path, tmp_path: Path) -> Path:
    """The folder of a run whose encoder, data and task are of one's own: two inputs and a padding mask."""
    recipe = parse_recipe(padded_host.RECIPE.format(llm=llama_folder))
    run = tmp_path / "run"
    lmgraft.save_pretrained(build_model(recipe), run / "model")
    (run / "config.yaml").write_text(recipe.yaml)
    return run


class TestSeveralInputs:
    @pytest.mark.parametrize("ending", long_but(["onnx", "pt2"]))
    def test_a_run_says_its_inputs(self, padded_run: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
        out = padded_run.parent / f"model.{ending}"
        assert main(["export", str(padded_run), "--out", str(out)]) == 0
        record = json.loads(out.with_name(f"{out.name}.json").read_text())
        assert record["inputs"] == [["batch", 6, 3], ["batch", 6], ["batch", 2]]
        assert record["dtypes"] == ["float32", "bool", "float32"]
        assert [check["batch"] for check in record["checks"]] == [2, 1, 3]
        assert "(batch, 6) bool" in capsys.readouterr().out
        encoder = padded_host.PaddedEncoder(outputs=2)
        model = lmgraft.load_pretrained(padded_run / "model", model=encoder)
        items = padded_host.PaddedData().example(5)
        inputs = (items.points, items.padded, items.context)
        if ending == "pt2":
            found = torch.export.load(out).module()(*inputs)
        else:
            session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
            arrays = {f"input_{i}": x.numpy() for i, x in enumerate(inputs)}
            found = torch.from_numpy(session.run(None, arrays)[0])
        assert relative_error(found, model(*inputs)) <= 1e-4
        hidden = items.points.masked_fill(items.padded.unsqueeze(-1), 7.0)
        assert relative_error(model(hidden, *inputs[1:]), model(*inputs)) <= 1e-5

    def test_shapes_of_one_sample_by_hand(self, saved: Path, tmp_path: Path) -> None:
        out = tmp_path / "model.pt2"
        assert main(["export", str(saved), "--out", str(out), "--input-shape", "3,32,32", "--batch", "3"]) == 0
        assert json.loads((tmp_path / "model.pt2.json").read_text())["inputs"] == [[3, 3, 32, 32]]
        assert main(["export", str(saved), "--out", str(out), "--input-shape", "3,32,32", "5"]) == 2


@pytest.mark.parametrize("ending", long_but(["onnx", "pt2"]))
def test_a_plain_model_too(tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]) -> None:
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 7}
    spec = {"factory": "timm", "name": "vit_tiny_patch16_224", "kwargs": kwargs}
    model = make_vit(**kwargs).eval()
    save_model(model, tmp_path / "model", host_spec=spec)
    out = tmp_path / f"plain.{ending}"
    assert main(["export", str(tmp_path), "--out", str(out)]) == 0
    record = json.loads(out.with_name(f"{out.name}.json").read_text())
    assert (record["block"], record["graft"], record["contents"]["block"]) == (None, None, 0)
    assert max(check["relative_error"] for check in record["checks"]) <= TOLERANCE
    assert "block  none" in capsys.readouterr().out


class TestRefusals:
    @pytest.mark.parametrize("package", long_but(["onnx", "onnxscript", "onnxruntime"], "onnx"))
    def test_a_missing_extra(self, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(VersionError, match=rf"needs the package '{package}'(.|\n)*lmgraft\[export\]"):
            export_onnx(make(), X, tmp_path / "model.onnx")
        if package == "onnxruntime":
            assert export_onnx(make(), X, tmp_path / "model.onnx", check=False).checks == ()

    def test_another_output(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An older export stays; nothing else is left."""
        path = tmp_path / "model.pt2"
        path.write_bytes(b"an older one")
        monkeypatch.setattr(compare, "_relative", lambda *_: float("nan"))
        with pytest.raises(ExportError, match=r"differs from the model's by nan \(example input, batch 2"):
            export_torch(make(), X, path)
        assert path.read_bytes() == b"an older one"
        assert names_in(tmp_path) == ["model.pt2"]

    def test_a_program_that_was_tampered_with(self) -> None:
        model = make()
        with pytest.raises(ExportError, match=r"differs from the model's by 5\.0e-04"):
            compare.compare(lambda inputs: [model(*inputs) * 1.0005], model, (X,), ({0: "batch"},))
        with pytest.raises(ExportError, match="outputs of shape"):
            compare.compare(lambda inputs: [model(*inputs)[:, :3]], model, (X,), ({0: "batch"},))

    def test_no_place_to_write(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ExportError, match="cannot be written"):
            export_torch(make(), X, tmp_path / "file" / "model.pt2")
        (tmp_path / "folder.pt2").mkdir()
        with pytest.raises(ExportError, match="is a folder"):
            export_torch(make(), X, tmp_path / "folder.pt2")

    def test_a_full_disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_program: object, path: Path) -> None:
            path.write_bytes(b"half of it")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch.export, "save", full)
        with pytest.raises(ExportError, match=r"model\.pt2 cannot be written \(No space left"):
            export_torch(make(), X, tmp_path / "model.pt2")
        assert names_in(tmp_path) == []

    def test_an_example_that_does_not_fit(self, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match="cannot trace this VisionTransformer"):
            export_torch(make(), X[:, :2], tmp_path / "model.pt2")
        assert names_in(tmp_path) == []


@pytest.fixture(scope="module")
def saved(llama_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder's model whose block, 32 wide, is wide enough for a host of 16."""
    kwargs = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 7}
    spec = {"factory": "timm", "name": "vit_tiny_patch16_224", "kwargs": kwargs}
    model = lmgraft.graft(make_vit(**kwargs), str(llama_folder), host_spec=spec)
    run = tmp_path_factory.mktemp("run")
    lmgraft.save_pretrained(model, run / "model")
    return run


class TestCommand:
    def test_onnx(self, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "new" / "model.onnx"
        assert main(["export", str(saved), "--out", str(out)]) == 0
        model = lmgraft.load_pretrained(saved / "model")
        assert relative_error(run_onnx(out, images(3)), model(images(3))) <= 1e-4
        said = capsys.readouterr().out
        for text in ("(batch, 3, 32, 32) float32", "ONNX, opset", "left out", "random input, batch 3", "digest"):
            assert text in said
        record = json.loads((out.parent / "model.onnx.json").read_text())
        assert record["files"] == {"model.onnx": out.stat().st_size}
        assert record["block"]["digest"] == model.graft.block.provenance.digest
        assert record["environment"]["versions"].keys() >= {"lmgraft", "torch", "onnx", "onnxruntime"}
        assert all(check["relative_error"] <= 1e-4 for check in record["checks"])
        assert FOLDED[0] in record["left_out"]
        assert names_in(out.parent) == ["model.onnx", "model.onnx.json"]

    @pytest.mark.long
    def test_torch_with_a_fixed_batch(self, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out = tmp_path / "model.pt2"
        assert main(["export", str(saved / "model"), "--out", str(out), "--batch", "1", "--no-check"]) == 0
        model = lmgraft.load_pretrained(saved / "model")
        loaded = torch.export.load(out).module()
        assert relative_error(loaded(images(1)), model(images(1))) <= 1e-5
        assert "not, as asked" in capsys.readouterr().out
        assert json.loads((tmp_path / "model.pt2.json").read_text())["inputs"] == [[1, 3, 32, 32]]

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["{empty}", "--out", "{out}.onnx"], "holds no saved model"),
            (["{begun}", "--out", "{out}.onnx"], "holds no trained model"),
            (["{plain}", "--out", "{out}.onnx"], "is a finished run without a saved model"),
            (["{saved}", "--out", "{out}.bin"], "says no format"),
            (["{saved}", "--out", "{out}.bin", "--format", "torch"], "does not end in .pt2"),
            (["{saved}", "--out", "{out}.pt2", "--input-shape", "2,32,32"], "cannot trace"),
        ],
    )
    def test_mistakes(
        self, saved: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        begun, empty, plain = (tmp_path / name for name in ("begun", "empty", "plain"))
        for folder in (begun, empty, plain):
            folder.mkdir()
        (begun / "config.yaml").touch()
        (plain / "result.json").touch()
        places = {"begun": begun, "empty": empty, "plain": plain, "saved": saved, "out": tmp_path / "model"}
        assert main(["export", *(a.format(**places) for a in arguments)]) == 2
        assert said in capsys.readouterr().err
        assert names_in(tmp_path) == ["begun", "empty", "plain"]

    @pytest.mark.parametrize("option", [["--batch", "0"], ["--batch", "x"], ["--input-shape", "3,x"]])
    def test_options_that_are_no_numbers(self, option: list[str]) -> None:
        assert main(["export", "run", "--out", "model.onnx", *option]) == 2

"""Export to Hugging Face: what transformers loads computes what was trained, and training starts from it again."""

import json
import resource
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from families import MODELS, Moe, titan_logits, titan_model, tokens
from gang import Case, run_gang
from safetensors.torch import load_file
from tiny import QWEN3, make, make_dataset

from primus.backends.base import Progress
from primus.backends.pytorch.shards import as_tensor
from primus.backends.torchtitan import TorchTitanBackend
from primus.backends.torchtitan.start import load_huggingface, random_start
from primus.checkpoints import safetensors, store
from primus.config import huggingface
from primus.config.experiment import Model
from primus.errors import CheckpointError
from primus.runtime.exchange.exchanges import Exchanges
from primus.runtime.exchange.exporting import export_huggingface

TOLERANCE = 1e-5
"""Measured: 2e-6 at most. The contract is 1e-4."""


class Export(Protocol):
    def __call__(self, checkpoint: Path, output: Path, *, dtype: str = "float32", progress: Progress = ...) -> None: ...


@pytest.fixture(scope="module")
def export(exchanges: Exchanges) -> Export:
    """``export_huggingface`` in the processes of the session."""

    def work(checkpoint: Path, output: Path, *, dtype: str = "float32", progress: Progress = lambda *_: None) -> None:
        export_huggingface(exchanges, checkpoint, output, dtype=dtype, progress=progress)

    return work


def in_transformers(directory: Path, **options: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, **options)


def started(model: Model, **options: Any) -> Any:
    """The model from a random start, with norms, biases and sinks moved off theirs."""
    built = titan_model(model, **options)
    random_start([built], model, 5)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in built.named_parameters():
            if parameter.ndim == 1 or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return built


def checkpoint(built: Any, model: Model, run: Path) -> Path:
    """A complete checkpoint of the model, with the state of an optimizer beside it."""
    directory = store.begin(run, 3)
    state = {**built.state_dict(), "optimizer.exp_avg.norm.weight": torch.full((64,), float("nan"))}
    dcp.save(state, storage_writer=dcp.FileSystemWriter(directory), no_dist=True)
    store.seal(directory, step=3, consumed_samples=24, model=model.model_dump(mode="json"))
    return directory


@pytest.mark.parametrize("name", MODELS)
def test_transformers_computes_the_same_from_the_export(export: Export, name: str, tmp_path: Path) -> None:
    model, text = MODELS[name], tokens()
    built = started(model)
    if model.model_type == "deepseek_v3":
        with torch.no_grad():
            for layer in list(built.layers.values())[model.first_k_dense_replace or 0 :]:
                layer.moe.expert_bias_E.copy_(0.1 * torch.randn(8))
    output = tmp_path / "exported"
    export(checkpoint(built, model, tmp_path), output)
    twin, loading = in_transformers(output, attn_implementation="eager", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        torch.testing.assert_close(twin(text).logits, titan_logits(built, text), rtol=0, atol=TOLERANCE)
    fields = huggingface.model_fields(str(output))
    again = titan_model(Model.model_validate(model.model_dump() | fields, strict=False))
    load_huggingface([again], model, output)
    assert all(torch.equal(value, built.state_dict()[key]) for key, value in again.state_dict().items())


def test_large_exports_are_split_and_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = MODELS["llama"]
    built = started(model)
    monkeypatch.setattr("primus.checkpoints.safetensors.write.__defaults__", (60_000,))
    seen: list[tuple[int, int]] = []
    output = tmp_path / "exported"
    output.mkdir()
    TorchTitanBackend().export_weights(
        checkpoint(built, model, tmp_path), output, "float32", lambda *now: seen.append(now)
    )
    files = sorted(path.name for path in output.glob("*.safetensors"))
    assert len(files) > 3
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    total = len(index["weight_map"])
    assert seen == [(done, total) for done in range(total + 1)]
    assert index["metadata"]["total_size"] == 4 * sum(p.numel() for p in built.parameters())
    (output / "config.json").write_text(json.dumps(huggingface.to_config(model)))
    twin = in_transformers(output)
    with torch.no_grad():
        torch.testing.assert_close(twin(tokens()).logits, titan_logits(built, tokens()), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("dtype", "torch_dtype"), [("bfloat16", torch.bfloat16), ("float16", torch.float16)])
def test_dtypes_round_as_torch_does(export: Export, dtype: str, torch_dtype: torch.dtype, tmp_path: Path) -> None:
    model = MODELS["qwen3 tied"]
    built = started(model)
    with torch.no_grad():
        built.norm.weight[:4] = torch.tensor([float("nan"), float("inf"), 1.00390625, 65535.0])
    output = tmp_path / "exported"
    export(checkpoint(built, model, tmp_path), output, dtype=dtype)
    stored = load_file(output / "model.safetensors")
    assert "lm_head.weight" not in stored
    for ours, theirs in (("norm.weight", "model.norm.weight"), ("tok_embeddings.weight", "model.embed_tokens.weight")):
        expected = built.state_dict()[ours].to(torch_dtype)
        torch.testing.assert_close(stored[theirs], expected, rtol=0, atol=0, equal_nan=True)
    assert in_transformers(output).dtype == torch_dtype


def test_nothing_is_overwritten_and_nothing_half_written_stays(export: Export, tmp_path: Path) -> None:
    model = MODELS["llama"]
    source = checkpoint(started(model), model, tmp_path)
    output = tmp_path / "out" / "exported"
    output.mkdir(parents=True)
    (output / "precious").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        export(source, output)
    assert [path.name for path in output.iterdir()] == ["precious"]
    with pytest.raises(CheckpointError, match="no such dtype"):
        export(source, tmp_path / "out" / "x", dtype="int4")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Exchanges() as small:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))  # as on a full disk
        try:
            small.start("torchtitan")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        with pytest.raises(CheckpointError, match="cannot be written: File too large"):
            export_huggingface(small, source, tmp_path / "out" / "second", progress=lambda *_: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["exported"]


def test_damaged_checkpoints_are_refused(export: Export, tmp_path: Path) -> None:
    model = MODELS["llama"]
    source = checkpoint(started(model), model, tmp_path)
    victim = max(source.glob("*.distcp"), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    with pytest.raises(CheckpointError, match=victim.name):
        export(source, tmp_path / "exported")
    (source / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        export(source, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()


def test_what_hugging_face_cannot_express_is_refused(export: Export, tmp_path: Path) -> None:
    model = MODELS["gpt_oss"]
    built = started(model)
    with torch.no_grad():
        built.layers["1"].moe.expert_bias_E[3] = 0.5
    with pytest.raises(CheckpointError, match=r"layers.1.moe.expert_bias_E is a balancing bias"):
        export(checkpoint(built, model, tmp_path / "a"), tmp_path / "exported")
    model = MODELS["deepseek_v3 plain"].model_copy(update={"scoring_func": "softmax"})
    with pytest.raises(CheckpointError, match="routes by softmax"):
        export(checkpoint(started(model), model, tmp_path / "b"), tmp_path / "exported")


def test_experts_without_balancing_export_a_zero_bias(export: Export, tmp_path: Path) -> None:
    model = MODELS["deepseek_v3 plain"]
    built = started(model, moe=Moe(balance="none"))
    export(checkpoint(built, model, tmp_path), tmp_path / "exported")
    stored = load_file(tmp_path / "exported" / "model.safetensors")
    assert not stored["model.layers.0.mlp.gate.e_score_correction_bias"].any()


def test_bfloat16_conversion_is_exact_for_every_value() -> None:
    every = np.arange(1 << 16, dtype=np.uint32) << 16
    values = np.concatenate([(every | low).view(np.float32) for low in (0, 0x7FFF, 0x8000, 0x8001)])
    ours = safetensors.narrowed(values, "BF16")
    theirs = torch.from_numpy(values).to(torch.bfloat16)
    nan = theirs.isnan().numpy()
    assert np.array_equal(ours[~nan], theirs.view(torch.uint16).numpy()[~nan])
    assert as_tensor(ours[nan]).isnan().all()


@pytest.fixture(scope="module")
def trained(export: Export, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs on two tensor-parallel ranks, their exports, and runs that start from these on two sharded ranks."""
    root = tmp_path_factory.mktemp("runs")
    dataset = make_dataset(root / "data" / "chain")
    common: dict[str, Any] = {"train__steps": 4, "data__validation": 0.05, "eval__steps": 2, "eval__interval": 100}
    models = {"llama": {}, "qwen3": {"model": QWEN3}}
    cases = [
        Case(name, make(root / name, dataset, nproc=2, parallel__tensor=2, **common, **more))
        for name, more in models.items()
    ]
    found: dict[str, Any] = {"root": root, **run_gang(cases, 2, root / "first")}
    again = []
    for name in models:
        found[name].ended()
        export(store.complete(root / name)[0].directory, root / f"{name}-hf")
        plan = make(root / f"{name}-again", dataset, nproc=2, model={"init": str(root / f"{name}-hf")}, **common)
        again.append(Case(f"{name}-again", plan))
    return found | run_gang(again, 2, root / "second")


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_an_exported_run_starts_again_with_the_same_loss(name: str, trained: dict[str, Any]) -> None:
    ended, begun = trained[name].of("eval_done")[-1], trained[f"{name}-again"].ended().of("eval_done")[0]
    assert (ended["step"], begun["step"]) == (4, 0)
    first = trained[name].of("eval_done")[0]
    assert first["loss"] - ended["loss"] > 0.1
    assert begun["loss"] == pytest.approx(ended["loss"], abs=1e-5)
    twin = in_transformers(trained["root"] / f"{name}-hf")
    assert twin.config.model_type == name

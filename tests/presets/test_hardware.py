"""Hardware presets: complete, consistent with each other and with the arithmetic of the chips."""

from __future__ import annotations

from pathlib import Path

import pytest

from primus.config.experiment import Hardware
from primus.config.load import load
from primus.config.presets import available, root

ACCELERATORS = ("MI300X", "MI325X", "MI350X", "MI355X", "H100", "H200")

FLOP_A_CLOCK = {
    # units, FLOP a clock and unit by precision, GHz: AMD CDNA 3 and 4 white papers, NVIDIA H100 white paper (at the
    # boost clock of its tensor-core figures)
    "MI300X": (304, {"fp32": 256, "bf16": 2048, "fp8": 4096}, 2.1),
    "MI325X": (304, {"fp32": 256, "bf16": 2048, "fp8": 4096}, 2.1),
    "MI350X": (256, {"fp32": 256, "bf16": 4096, "fp8": 8192}, 2.2),
    "MI355X": (256, {"fp32": 256, "bf16": 4096, "fp8": 8192}, 2.4),
    "H100": (132, {"bf16": 4096, "fp8": 8192}, 1.83),
    "H200": (132, {"bf16": 4096, "fp8": 8192}, 1.83),
}


def preset(name: str, directory: Path) -> Hardware:
    file = directory / "experiment.yaml"
    file.write_text(
        f"extends: [models/tiny_llama, hardware/{name}]\nname: t\ndata: {{train: synthetic}}\n"
        "train: {steps: 1, global_batch_size: 1, seq_length: 128}\noptimizer: {lr: 0.1}\n"
    )
    return load(file).experiment.hardware


def test_the_presets_are_these() -> None:
    assert {name.removeprefix("hardware/") for name in available("hardware")} == {*ACCELERATORS, "cpu"}


@pytest.mark.parametrize("name", ACCELERATORS)
def test_an_accelerator_is_fully_described(name: str, tmp_path: Path) -> None:
    hardware = preset(name, tmp_path)
    assert hardware.name == name
    assert hardware.device == ("rocm" if name.startswith("MI") else "cuda")
    assert hardware.devices_per_node == 8
    assert hardware.memory_gib
    assert hardware.bandwidth_gb_s
    assert set(hardware.peak_tflops) == {"fp32", "bf16", "fp8"}


@pytest.mark.parametrize("name", ACCELERATORS)
def test_peaks_follow_from_units_and_clock(name: str, tmp_path: Path) -> None:
    """A peak with sparsity, or of another card, would be off by far more than rounding."""
    units, per_clock, gigahertz = FLOP_A_CLOCK[name]
    peaks = preset(name, tmp_path).peak_tflops
    for precision, flop in per_clock.items():
        assert peaks[precision] == pytest.approx(units * flop * gigahertz / 1000, rel=1e-3)  # type: ignore[index]


def test_a_cpu_claims_no_figures(tmp_path: Path) -> None:
    hardware = preset("cpu", tmp_path)
    assert (hardware.device, hardware.devices_per_node) == ("cpu", None)
    assert (hardware.memory_gib, hardware.bandwidth_gb_s, hardware.peak_tflops) == (None, None, {})


def test_each_file_names_its_source() -> None:
    for name in ACCELERATORS:
        assert "data sheet" in (root() / "hardware" / f"{name}.yaml").read_text().splitlines()[0]

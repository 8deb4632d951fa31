"""On which processors bf16 costs more time than it saves."""

import platform

import pytest
import torch

from smet_train.train.precision import slow_products


@pytest.mark.parametrize(
    ("machine", "capability", "device", "precision", "slow"),
    [
        ("x86_64", "AVX2", "cpu", "bf16", True),
        ("AMD64", "DEFAULT", "cpu", "bf16_mixed", True),
        ("x86_64", "AVX512", "cpu", "bf16", False),
        ("x86_64", "AVX2", "cpu", "fp32", False),
        ("x86_64", "AVX2", "cuda", "bf16", False),
        ("aarch64", "DEFAULT", "cpu", "bf16", False),  # oneDNN asks other things of other processors
    ],
)
def test_bf16_is_slow_without_avx512(
    monkeypatch: pytest.MonkeyPatch, machine: str, capability: str, device: str, precision: str, slow: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert (slow_products(torch.device(device), precision) is not None) == slow

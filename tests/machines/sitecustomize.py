"""This computer as another one, for tests: SCOREFIELD_MACHINE=avx2, bf16 or amx.

Python imports a module of this name as it starts, from where PYTHONPATH says, so processes that tests start are the same
machine as the tests. Two things change. PyTorch says that the processor multiplies bf16 with other instructions, which
`training.precision` decides by. And PyTorch's kernels use no better instructions than that machine has; they never use
better ones than this computer has.
"""

import os
from types import MappingProxyType

INSTRUCTIONS = {"avx2": (), "bf16": ("avx512_bf16",), "amx": ("avx512_bf16", "amx_bf16")}      # that multiply bf16
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {},
}


def become(machine: str) -> None:
    """Make this process that machine, and those that it starts. Call it before anything else imports torch."""
    if machine not in INSTRUCTIONS:
        raise SystemExit(f"SCOREFIELD_MACHINE must be one of {', '.join(INSTRUCTIONS)}; got {machine!r}")
    os.environ.update(LIMITS[machine])
    import torch
    real = getattr(torch.cpu, "get_capabilities", dict)()      # older versions of PyTorch have none
    pretended = {name: name in INSTRUCTIONS[machine] for name in INSTRUCTIONS["amx"]}
    capabilities = MappingProxyType({**real, **pretended})
    torch.cpu.get_capabilities = lambda: capabilities


if "SCOREFIELD_MACHINE" in os.environ:
    become(os.environ["SCOREFIELD_MACHINE"])

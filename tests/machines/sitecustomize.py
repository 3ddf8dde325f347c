"""This computer as another one, for tests: SCOREFIELD_MACHINE=avx2, bf16 or amx.

Python imports a module of this name as it starts, from where PYTHONPATH says, so processes that tests start are the same
machine as the tests. Two things change. PyTorch says that the processor multiplies bf16 with other instructions, which
`training.precision` decides by. And PyTorch's kernels use no better instructions than that machine has; they never use
better ones than this computer has.

PyTorch itself is imported when the process imports it: a process that starts is as long in Python's own start as any other.
"""

import os
import sys
from importlib.machinery import PathFinder

INSTRUCTIONS = {"avx2": (), "bf16": ("avx512_bf16",), "amx": ("avx512_bf16", "amx_bf16")}      # that multiply bf16
LIMITS = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "bf16": {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
    "amx": {},
}


class Pretend:
    """Finds torch where it is, once, and changes what it says of the processor as soon as it is imported."""

    def __init__(self, machine):
        self.machine = machine

    def find_spec(self, name, path=None, target=None):
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None:
            execute = spec.loader.exec_module
            spec.loader.exec_module = lambda module: (execute(module), self.change(module))
        return spec

    def change(self, torch):
        from types import MappingProxyType

        real = getattr(torch.cpu, "get_capabilities", dict)()      # older versions of PyTorch have none
        pretended = {name: name in INSTRUCTIONS[self.machine] for name in INSTRUCTIONS["amx"]}
        capabilities = MappingProxyType({**real, **pretended})
        torch.cpu.get_capabilities = lambda: capabilities


def become(machine: str) -> None:
    """Make this process that machine, and those that it starts. Call it before anything else imports torch."""
    if machine not in INSTRUCTIONS:
        raise SystemExit(f"SCOREFIELD_MACHINE must be one of {', '.join(INSTRUCTIONS)}; got {machine!r}")
    os.environ.update(LIMITS[machine])
    if "torch" in sys.modules:
        Pretend(machine).change(sys.modules["torch"])
    elif not any(type(finder).__name__ == "Pretend" for finder in sys.meta_path):
        sys.meta_path.insert(0, Pretend(machine))


if "SCOREFIELD_MACHINE" in os.environ:
    become(os.environ["SCOREFIELD_MACHINE"])

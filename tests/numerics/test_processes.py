"""Processes that share work meet before they begin, and stop if they are about to do different things."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
import sys; from pathlib import Path; import torch
from scorefield.numerics.processes import launched, meet
try:
    meet(launched(), [Path(sys.argv[1])], torch.device("cpu"), sys.argv[2] * launched().rank)
except ValueError as error:
    Path(sys.argv[1], str(launched().rank)).write_text(str(error))
"""


@pytest.mark.costly
@pytest.mark.parametrize("key, files", [("another", ["0", "1"]), ("", [])])
def test_processes_that_are_about_to_do_different_things_stop(tmp_path, key, files):
    """The first one would wait for ever for samples of one checkpoint, while the second draws those of another."""
    (tmp_path / "code.py").write_text(CODE)
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone",
                    str(tmp_path / "code.py"), str(tmp_path / "shared"), key], check=True, cwd=ROOT, capture_output=True,
                   timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})
    told = sorted((tmp_path / "shared").iterdir())
    assert [path.name for path in told] == files
    assert all("same newest checkpoint" in path.read_text() for path in told)

"""The page of a comparison of digits: what it costs beyond the sampling, how large it is, and its picture for the docs.

    python main.py --config configs/vp_digits_labels.py --mode train        # or make demo
    python -m benchmarks.comparison

Six samplers at four budgets. It must take at most 3 minutes more than the sampling itself and at most 5 MB. Where Chromium
is installed, docs/images/compare.png is made again.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

from PIL import Image

from scorefield.evaluation import compare

ROOT = Path(__file__).parents[1]
SAMPLERS = ("auto", "unipc", "ddim", "heun", "euler_maruyama", "predictor_corrector")
PICTURE = ROOT / "docs" / "images" / "compare.png"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path, default=ROOT / "runs" / "vp_digits_labels")
    parser.add_argument("--num_samples", type=int, default=1000)
    asked = parser.parse_args()
    start = time.perf_counter()
    made = compare(asked.run, samplers=SAMPLERS, budgets=(5, 10, 20, 50), n=asked.num_samples,
                   title=f"Samplers on {asked.run.name}")
    page = made.write(asked.run / "compare_benchmark")
    beyond = time.perf_counter() - start - made.sampling_seconds
    size = page.stat().st_size
    print(made.recommendation)
    print(f"{len(made.rows)} pairs, {made.n} samples each: {made.sampling_seconds:.1f} s of sampling, {beyond:.1f} s of "
          f"all else (at most 180), {size:,} bytes (at most 5,000,000)")
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    (results / "comparison.json").write_text(json.dumps(
        {"pairs": len(made.rows), "samples": made.n, "sampling_seconds": made.sampling_seconds, "other_seconds": beyond,
         "bytes": size}, indent=2) + "\n")
    if shutil.which("chromium"):
        picture(page)


def picture(page: Path) -> None:
    """The first screen of the page, for the docs."""
    sys.path.insert(0, str(ROOT / "tests"))
    from browser import Browser, found

    program = found()
    assert program is not None
    with Browser(program) as browser:
        browser.open(page, 1120, 1400)
        browser.screenshot(PICTURE)
    Image.open(PICTURE).convert("RGB").quantize(128).save(PICTURE, optimize=True)
    print(f"wrote {PICTURE}, {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()

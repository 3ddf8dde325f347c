"""The sweep of a cascade's noise-conditioning augmentation: the Frechet distance of its samples by low_res_noise.

    python -m benchmarks.cascade --second runs/digits_cascade --first runs/digits_cascade_first --noise 0,0.1,0.2,0.3

Each row is one command of mode evaluate, whose samples and figures stay in the run of the second stage. Beside the cascade
stand samples given the low_res of held-out examples, which have none of the first stage's errors. Further flags, such as
--steps 20, go to every command.
"""

import argparse
import contextlib
import io

from scorefield.cli.main import main as command


def distance(second: str, source: str, noise: str, samples: int, more: list[str]) -> str:
    """The figure that one command of mode evaluate prints."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        command(["--workdir", second, "--mode", "evaluate", "--low_res", source, "--low_res_noise", noise, "--num_samples",
                 str(samples), "--metrics", "fid", *more])
    figure, = (line.strip() for line in said.getvalue().splitlines() if line.startswith("  fid "))
    return figure.removeprefix("fid ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", default="runs/digits_cascade_first")
    parser.add_argument("--second", default="runs/digits_cascade")
    parser.add_argument("--noise", default="0,0.1,0.2,0.3")
    parser.add_argument("--samples", type=int, default=1000)
    options, more = parser.parse_known_args()
    rows = []
    for noise in options.noise.split(","):
        figures = [distance(options.second, source, noise, options.samples, more) for source in (options.first, "data")]
        rows.append(f"| {noise} | {figures[0]} | {figures[1]} |")
    print("\n| low_res_noise | cascade | given held-out low_res |\n|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

"""Held-out digits whose right half is missing, restored by a trained run: recognised by the judge, and PSNR.

    python -m benchmarks.restoring_digits --run runs/vp_digits_labels --digits 100

Beside the ways to restore stand filling with the mean of the training digits, and the whole digits. A digit counts as
recognised where the judge (judge.py) takes an answer for its class.
"""

import argparse
import time

import torch
from torch import Tensor

from benchmarks.judge import as_pictures, train_judge
from scorefield.checkpoints import load_denoiser, read_checkpoint
from scorefield.data import codec_of, load_dataset
from scorefield.data.measured import placed, unit_of
from scorefield.evaluation.fidelity import psnr, ssim
from scorefield.evaluation.restore import Measured, restore, with_noise
from scorefield.guidance import threshold
from scorefield.guidance.operators import make_operator
from scorefield.samplers import make_sampler

# Name, sampler with its options, method. twisted_smc first, which is mode restore's default.
WAYS = (
    ("twisted_smc, tmpd", "twisted_smc", {"steps": 100, "particles": 64}, "tmpd"),
    ("twisted_smc, pigdm", "twisted_smc", {"steps": 100, "particles": 64}, "pigdm:data_std=0.5"),
    ("auto, tmpd", "auto", {"steps": 50}, "tmpd"),
    ("auto, pigdm", "auto", {"steps": 50}, "pigdm:data_std=0.5"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="runs/vp_digits_labels")
    parser.add_argument("--digits", type=int, default=100, help="how many of the held-out digits")
    parser.add_argument("--samples", type=int, default=8, help="answers for each")
    parser.add_argument("--operator", default="mask:half=right")
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--ways", default=",".join(str(i) for i in range(len(WAYS))), help="which rows, by number")
    options = parser.parse_args()
    config = read_checkpoint(options.run).config
    codec, data = codec_of(config["data"], config), load_dataset(config["data"])
    model = threshold(load_denoiser(options.run), "static", low=codec.low, high=codec.high)  # type: ignore[attr-defined]
    data_test, condition = data.test[torch.arange(options.digits)]
    truth, label = placed(data_test, codec), condition["label"]
    operator = make_operator(options.operator, data.shape)
    problem = Measured(operator, with_noise(operator(truth), options.noise), options.noise)
    judge, accuracy = train_judge()

    def row(name: str, x: Tensor, mean: Tensor, seconds: float) -> None:
        """x (digits, samples, *event), as the model sees data."""
        n = x.shape[1]
        with torch.no_grad():
            guess = judge(as_pictures(codec.decode(x.flatten(0, 1)))).argmax(1)
        recognised = float((guess == label.repeat_interleave(n)).double().mean())
        clean, answers = unit_of(truth, codec), unit_of(x.flatten(0, 1), codec)
        each = psnr(answers, clean.repeat_interleave(n, 0)).clamp(max=100).mean()
        of_mean = psnr(unit_of(mean, codec), clean).clamp(max=100)
        print(f"| {name} | {100 * recognised:.1f} % | {each:.2f} | {of_mean.mean():.2f} | "
              f"{ssim(unit_of(mean, codec), clean).mean():.3f} | {seconds:.0f} |", flush=True)

    print(f"The judge recognises {100 * accuracy:.1f} % of all held-out digits.\n")
    print("| way | recognised | PSNR of answers | PSNR of the mean | SSIM of the mean | seconds |")
    print("|---|---|---|---|---|---|")
    row("the whole digits", truth[:, None], truth, 0)
    train = placed(data.train[torch.arange(len(data.train))][0], codec).mean(0, keepdim=True)
    filled = operator.consistent(train.expand_as(truth), problem.y)  # type: ignore[operator]
    row("filled with the mean digit", filled[:, None], filled, 0)
    for i in map(int, options.ways.split(",")):
        name, sampler, settings, method = WAYS[i]
        start = time.perf_counter()
        found = restore(model, problem, make_sampler(sampler, **settings), method, options.samples, batch_size=512,
                        progress=True)
        row(name, found.x, found.mean, time.perf_counter() - start)


if __name__ == "__main__":
    main()

"""Blind denoising of photos, with what perfect stopping and a tuned rival would get.

    python benchmarks/photos.py --photos FOLDER

Each photo is halved twice by averaging, its centre 64x64 cut out and the mixture of
speckle and Gaussian noise of BIRD's experiment added, with a seed per photo. One preset
for all, the prior's own. Columns: PSNR in dB of the input, of the restoration at its
automatic stop, of the best iteration (oracle stop) and of a total-variation denoiser
whose weight is tuned on the truth, photo by photo (oracle TV; needs scikit-image).
"""

import argparse
import time
from pathlib import Path

import cases
import jax
import numpy as np
from skimage.restoration import denoise_tv_chambolle

from diip_jax import (
    DIIPConfig,
    Prior,
    degradations,
    engine,
    images,
    load_prior,
    metrics,
    stopping,
)

TV_WEIGHTS = np.geomspace(0.02, 1.0, 25)


def crop(path: Path) -> np.ndarray:
    """Return the clean 64x64 crop of a photo, in [0, 1]."""
    x = degradations.halve(degradations.halve(images.read(path).rgb))
    return degradations.centre_crop(x, 64)


def oracle_tv(reference: np.ndarray, degraded: np.ndarray) -> float:
    """Return the best PSNR over the weights of a total-variation denoiser."""
    return max(
        metrics.psnr(reference, denoise_tv_chambolle(degraded, w, channel_axis=-1))
        for w in TV_WEIGHTS
    )


def record(
    prior: Prior,
    jobs: list[engine.Job],
    config: DIIPConfig,
    clean: list[np.ndarray],
    num_lanes: int,
) -> tuple[list[list[float]], ...]:
    """Run every job through the whole budget; return losses, sharpnesses and PSNRs."""
    traces = tuple([[] for _ in jobs] for _ in range(3))
    unstopped = config.replace(criterion="never")
    for report in engine.run(prior, jobs, unstopped, num_lanes=num_lanes, chunk=1):
        for lane in [*report.running, *report.finished]:
            image = np.asarray(lane.restoration().image)
            numbers = (lane.loss, lane.sharpness, metrics.psnr(clean[lane.job], image))
            for trace, number in zip(traces, numbers, strict=True):
                trace[lane.job].append(number)
    return traces


def replay(
    config: DIIPConfig, losses: list[float], sharpnesses: list[float]
) -> tuple[int, str]:
    """Return where the criterion stops on recorded signals, and why.

    The criteria see nothing but these two signals, so this is the stop of `restore`.
    """
    criterion = stopping.criterion(config)
    state, update = criterion.init(), jax.jit(criterion.update)
    for k, (loss, sharpness) in enumerate(zip(losses, sharpnesses, strict=True)):
        state = update(state, k, np.float32(loss), np.float32(sharpness))
        if bool(state.verdict.detected_high):
            return k, "high_frequency"
        if bool(state.verdict.detected_low):
            return int(state.verdict.last_peak), "low_frequency"
    return len(losses) - 1, "max_iterations"


def main() -> None:
    """Print the table and write its record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--prior", default="natural64")
    parser.add_argument("--lanes", type=int, default=4)
    parser.add_argument("--first", type=int, default=0, help="skip this many photos")
    parser.add_argument("--count", type=int, help="then take so many")
    parser.add_argument("--budget", type=int, help="iterations of the oracle stop")
    parser.add_argument("--json", type=Path)
    flags = parser.parse_args()

    prior = load_prior(flags.prior)
    config = prior.card.preset
    if flags.budget:
        config = config.replace(max_iterations=flags.budget)
    every = sorted(flags.photos.glob("*.png"))
    stop = None if flags.count is None else flags.first + flags.count
    paths = every[flags.first : stop]
    seeds = range(flags.first, flags.first + len(paths))
    clean = [crop(path) for path in paths]
    noisy = [
        degradations.noise_mixture(x, np.random.default_rng(i)).astype(np.float32)
        for i, x in zip(seeds, clean, strict=True)
    ]
    key = jax.random.key(0)
    jobs = [
        engine.Job((64, 64), lambda y=y: y, jax.random.fold_in(key, i))
        for i, y in zip(seeds, noisy, strict=True)
    ]
    start = time.perf_counter()
    losses, sharpnesses, psnrs = record(prior, jobs, config, clean, flags.lanes)
    seconds = time.perf_counter() - start

    print("photo        input   stop  oracle oracle-TV   stopped at   best at  reason")
    rows = []
    for i, path in enumerate(paths):
        stopped, reason = replay(config, losses[i], sharpnesses[i])
        row = {
            "photo": path.stem,
            "input": metrics.psnr(clean[i], noisy[i]),
            "stop": psnrs[i][stopped],
            "oracle": max(psnrs[i]),
            "oracle_tv": oracle_tv(clean[i], noisy[i]),
            "iteration": stopped,
            "oracle_iteration": int(np.argmax(psnrs[i])),
            "reason": reason,
        }
        rows.append(row)
        print(
            f"{row['photo']:11s} {row['input']:6.2f} {row['stop']:6.2f} "
            f"{row['oracle']:7.2f} {row['oracle_tv']:9.2f} {row['iteration']:12d} "
            f"{row['oracle_iteration']:9d}  {row['reason']}"
        )
    means = {
        name: float(np.mean([row[name] for row in rows]))
        for name in ("input", "stop", "oracle", "oracle_tv")
    }
    gains = np.array([row["stop"] - row["input"] for row in rows])
    print(
        f"{'mean':11s} {means['input']:6.2f} {means['stop']:6.2f} "
        f"{means['oracle']:7.2f} {means['oracle_tv']:9.2f}"
    )
    print(
        f"mean gain {gains.mean():.2f} dB; at least 3 dB on {(gains >= 3).sum()} of "
        f"{len(rows)}; {seconds:.0f} s in all"
    )
    mean_gain = float(gains.mean())
    cases.write(flags.json, rows, mean=means, mean_gain=mean_gain, seconds=seconds)


if __name__ == "__main__":
    main()

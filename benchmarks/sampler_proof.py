"""A billion samples of discrete_gaussian at each of four σ: χ² over all values, signs, tails, lag correlations.

Minutes on one core. The key is fixed, so that anybody gets the same samples and figures. A tail begins at the next edge
of a bin. Writes results/sampler_proof.json, and exits with an error where a figure is beyond five standard deviations.
"""

from __future__ import annotations

import argparse
import math

import numpy as np
from measure import save

import fedcore as fc

KEY = bytes(range(32))
SIGMAS = {"0.5": 0.5, "sqrt 17": math.sqrt(17), "129": 129.0, "1e6": 1e6}
PART, LAGS, CUTS, MOST = 1 << 22, (1, 2, 3, 8, 1024), (2, 3, 4, 5, 6), 5.0


def above(sigma: float, x: float) -> float:
    """P(X > x), x halfway between integers: by sums up to σ = 1000, else the normal law, then 1e-13 off."""
    if sigma > 1000:
        return math.erfc(x / sigma / math.sqrt(2)) / 2
    reach = math.ceil(40 * sigma)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * sigma**2))
    return float(weights[reach + 1 + math.floor(x) :].sum() / weights.sum())


def bins(sigma: float) -> tuple[int, int, np.ndarray]:
    """(width, count, probabilities) of bins about 0: single values up to σ = 1000, else fiftieths of σ."""
    width = 1 if sigma < 1000 else 2 * math.floor(sigma / 100) + 1
    count = math.ceil(12 * sigma / width)
    if width == 1:
        weights = np.exp(-(np.arange(-count, count + 1) ** 2) / (2 * sigma**2))
        return width, count, weights / weights.sum()
    edges = [above(sigma, (k - 0.5) * width) for k in range(-count, count + 2)]
    return width, count, -np.diff(edges)


def proof(sigma: float, n: int, stream: str) -> dict[str, object]:
    """Figures of n samples, each in standard deviations from what the exact distribution gives."""
    width, count, probabilities = bins(sigma)
    observed = np.zeros(2 * count + 1, np.int64)
    products, squares, total = np.zeros(len(LAGS)), 0.0, 0
    for at in range(0, n, PART):
        samples = fc.ops.discrete_gaussian(min(PART, n - at), sigma, KEY, at, stream, threads=1)
        observed += np.bincount((samples + width // 2) // width + count, minlength=len(observed))
        values = samples.astype(float)
        total += int(samples.sum())
        squares += float(values @ values)
        products += [float(values[lag:] @ values[:-lag]) for lag in LAGS]
    assert observed.sum() == n, "a sample lies beyond 12 σ"
    expected = probabilities * n
    common = expected >= 10
    grouped = [np.append(a[common], a[~common].sum()) for a in (observed, expected)]
    keep = grouped[1] > 0
    chi = float((((grouped[0] - grouped[1]) ** 2)[keep] / grouped[1][keep]).sum())
    freedom = int(keep.sum()) - 1
    root = math.sqrt(n)
    positive, negative = int(observed[count + 1 :].sum()), int(observed[:count].sum())
    deviations = {
        "chi square": (chi - freedom) / math.sqrt(2 * freedom),
        "signs": (positive - negative) / math.sqrt(positive + negative),
        "mean": total / math.sqrt(squares),
    }
    deviations |= {f"lag {lag}": float(p / squares * root) for lag, p in zip(LAGS, products, strict=True)}
    tails = {}
    for cut in CUTS:
        first = math.floor(cut * sigma / width) + 1
        wanted = float(expected[count + first :].sum())
        right, left = int(observed[count + first :].sum()), int(observed[: count - first + 1].sum())
        tails[f"beyond {cut} sigma"] = {"left": left, "right": right, "expected": wanted}
        if wanted >= 10:
            deviations[f"right of {cut} sigma"] = (right - wanted) / math.sqrt(wanted)
            deviations[f"left of {cut} sigma"] = (left - wanted) / math.sqrt(wanted)
    return {
        "samples": n, "stream": stream, "bins": int(freedom + 1), "width of a bin": width, "chi square": chi,
        "variance / sigma^2": squares / n / sigma**2, "standard deviations": deviations, "tails": tails,
        "greatest": max(abs(value) for value in deviations.values()),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=10**9)
    parser.add_argument("--stream", default="chacha20", choices=["chacha20", "aes256ctr"])
    given = parser.parse_args()
    results = {f"sigma {name}": proof(sigma, given.samples, given.stream) for name, sigma in SIGMAS.items()}
    save("sampler_proof", results, timed=False)
    beyond = [name for name, entry in results.items() if float(str(entry["greatest"])) > MOST]
    if beyond:
        raise SystemExit(f"sampler_proof: {', '.join(beyond)} beyond {MOST:g} standard deviations; see the result file")


if __name__ == "__main__":
    main()

"""How often the intervals hold the truth, and how often the tests cry wolf: `python benchmarks/statistics_coverage.py`.

Scores of images are simulated with a known mean. A patient has 1, 1, 2, 3, 5 or 8 images, and half of a score's variance
(before it is bent to its distribution) belongs to the patient. A 95 % interval should hold the mean in 95 of 100 data
sets; a test at 5 % should find a difference where there is none in 5 of 100.

Writes the tables to `benchmarks/results/statistics_coverage.md`; about five minutes with the default of 4,000 data sets.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from heatproof.statistics import compare, patient_bootstrap_columns, sign_flip_test

Floats = NDArray[np.float64]

LEVEL = 0.95
IMAGES = (1, 1, 2, 3, 5, 8)
SHARE_OF_PATIENT = 0.5
AT_ONCE = 50  # data sets with the same patients
RESULTS = Path(__file__).parent / "results" / "statistics_coverage.md"


@dataclass(frozen=True)
class Score:
    """A distribution of scores: what a standard normal is bent to, and the mean of that."""

    bend: Callable[[Floats], Floats]
    mean: float
    share: bool = False


def _share_of_positives(p: float) -> Score:
    return Score(lambda z: (z < stats.norm.ppf(p)).astype(float), p, share=True)


SCORES = {
    "normal": Score(lambda z: z, 0.0),
    "beta(0.5, 2), skewness 1.25": Score(lambda z: stats.beta.ppf(stats.norm.cdf(z), 0.5, 2), 0.2, share=True),
    "log-normal, skewness 1.75": Score(lambda z: np.exp(z / 2), math.exp(1 / 8)),
    "log-normal, skewness 6.2": Score(np.exp, math.exp(1 / 2)),
    "binary, p = 0.1": _share_of_positives(0.1),
    "binary, p = 0.5": _share_of_positives(0.5),
}


def data_sets(count: int, patients: int, columns: int = AT_ONCE) -> Iterator[tuple[Floats, NDArray[np.int64]]]:
    """Standard normal values `[N, columns]` that agree within patients, and the patient of each row."""
    for seed in range(-(-count // columns)):
        random = np.random.default_rng([seed, patients])
        rows = np.repeat(np.arange(patients), random.choice(IMAGES, size=patients))
        own, common = random.normal(size=(len(rows), columns)), random.normal(size=(patients, columns))[rows]
        yield math.sqrt(SHARE_OF_PATIENT) * common + math.sqrt(1 - SHARE_OF_PATIENT) * own, rows


def _level_without_widening(rows: NDArray[np.int64]) -> float:
    """The level at which the interval is BCa's at `LEVEL` as Efron has it, not widened for few patients."""
    images = np.bincount(rows)
    k = images.sum() ** 2 / (images**2).sum()
    return float(2 * stats.t.cdf(stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt((k - 1) / k), k - 1) - 1)


def coverage(score: Score, patients: int, count: int) -> dict[str, float]:
    """Percentage of data sets whose interval holds the mean, and lies below or above it."""
    found: dict[str, list[float]] = {"shipped": [], "below": [], "above": [], "not widened": [], "by image": []}
    for seed, (normal, rows) in enumerate(data_sets(count, patients)):
        values = score.bend(normal)
        names = [f"{row:06d}" for row in rows]
        by_image = np.arange(len(rows))
        for name, units, level in (
            ("shipped", names, LEVEL),
            ("not widened", names, _level_without_widening(rows)),
            ("by image", by_image, LEVEL),
        ):
            for interval in patient_bootstrap_columns(values, units, seed=seed, level=level, share=score.share):
                found[name].append(interval.low <= score.mean <= interval.high)
                if name == "shipped":
                    found["below"].append(interval.high < score.mean)
                    found["above"].append(interval.low > score.mean)
    return {name: 100 * float(np.mean(hits)) for name, hits in found.items()}


NO_DIFFERENCE = {
    "normal": lambda z: z,
    "heavy tails (t, 3 degrees)": lambda z: stats.t.ppf(stats.norm.cdf(z), 3),
    "-1, 0, 1 (hits)": lambda z: np.sign(z) * (np.abs(z) > 1),
    "skewed, mean zero": lambda z: np.exp(z / 2) - math.exp(1 / 8),
}


def false_positives(bend: Callable[[Floats], Floats], patients: int, count: int) -> dict[str, float]:
    """Percentage of data sets without a difference in which p is at most 5 %; `by image` flips images, not patients."""
    found: dict[str, list[bool]] = {"shipped": [], "by image": []}
    options = {"draws": 999, "interval_draws": 1}
    for normal, rows in data_sets(count, patients):
        for differences in bend(normal).T:
            found["shipped"].append(sign_flip_test(differences, rows, **options).p <= 1 - LEVEL)
            found["by image"].append(sign_flip_test(differences, np.arange(len(rows)), **options).p <= 1 - LEVEL)
    return {name: 100 * float(np.mean(hits)) for name, hits in found.items()}


def family_errors(patients: int, count: int, better: float = 0.0) -> dict[str, float]:
    """Percentage of families of six methods with a difference found among the five that are equal.

    The sixth is `better` than these, so with a large value its five pairs are rightly found and make Holm milder.
    """
    methods = 6
    frames = []
    for number, (normal, rows) in enumerate(data_sets(count * methods, patients, columns=methods)):
        values = normal + better * (np.arange(methods) == methods - 1)
        table = pd.DataFrame(values).assign(sample_id=np.arange(len(rows)), patient_id=rows, dataset=number)
        frames.append(table.melt(["sample_id", "patient_id", "dataset"], var_name="method"))
    pairs = compare(pd.concat(frames), draws=999, interval_draws=1)
    pairs = pairs[pairs["method_b"] < methods - 1]
    by_family = pairs.groupby("dataset")[["p", "p_holm"]].min() <= 1 - LEVEL
    return {"Holm": 100 * float(by_family["p_holm"].mean()), "uncorrected": 100 * float(by_family["p"].mean())}


def coverage_table(count: int) -> str:
    rows = [
        "| scores | patients | shipped | interval below / above the mean | BCa not widened | by image |",
        "|---|---|---|---|---|---|",
    ]
    outside = []
    for name, score in SCORES.items():
        for patients in (10, 30, 100):
            found = coverage(score, patients, count)
            rows.append(
                f"| {name} | {patients} | **{found['shipped']:.1f}** | {found['below']:.1f} / {found['above']:.1f} | "
                f"{found['not widened']:.1f} | {found['by image']:.1f} |"
            )
            print(rows[-1], flush=True)
            if patients >= 30 and not 93 <= found["shipped"] <= 97:
                outside.append(f"{name}, {patients} patients: {found['shipped']:.1f}")
    reading = f"From 30 patients on, outside 93 to 97 %: {'; '.join(outside) or 'none'}."
    return "\n".join([*rows, "", reading])


def test_table(count: int) -> str:
    rows = ["| differences | patients | shipped | by image |", "|---|---|---|---|"]
    for name, bend in NO_DIFFERENCE.items():
        for patients in (10, 30, 100):
            found = false_positives(bend, patients, count)
            rows.append(f"| {name} | {patients} | **{found['shipped']:.1f}** | {found['by image']:.1f} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def family_table(count: int) -> str:
    rows = ["| sixth method better by | patients | Holm | uncorrected |", "|---|---|---|---|"]
    for better in (0.0, 2.0):
        for patients in (10, 30):
            found = family_errors(patients, count, better)
            rows.append(f"| {better:g} | {patients} | **{found['Holm']:.1f}** | {found['uncorrected']:.1f} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=4000, help="data sets a row (4000)")
    count = parser.parse_args().replicates
    error = 100 * math.sqrt(LEVEL * (1 - LEVEL) / count)
    text = f"""# Coverage of the intervals, errors of the tests

Made by `python benchmarks/statistics_coverage.py --replicates {count}`: {count:,} data sets a row, so a number near 95 or 5
has a standard error of {error:.2f}. Patients have 1, 1, 2, 3, 5 or 8 images that share half of their variance. All
numbers are percentages.

## 95 % intervals of the mean that hold it

Shipped: `patient_bootstrap`, 2,000 draws of patients, BCa, widened for few patients. By image: the same interval with every
image as its own patient, which is what the usual formulas do.

{coverage_table(count)}

## Sign-flip tests that find a difference where the mean is zero, at 5 %

By image: the signs of images are flipped, and not those of patients. Where differences are skewed, sign flips are not
exact.

{test_table(count)}

## Families of six methods with a false difference among the five equal ones, at 5 %

{family_table(count // 2)}
"""
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text, encoding="utf-8")
    print(f"written to {RESULTS}")


if __name__ == "__main__":
    main()

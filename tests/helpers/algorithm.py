"""Algorithm 1 of the paper, its listing transcribed on Python lists."""

from typing import NamedTuple


class Verdict(NamedTuple):
    """What a run of a criterion comes to; k is None if nothing fired."""

    k: int | None
    detected_low: bool
    detected_high: bool
    last_peak: int
    no_peak: bool


def algorithm_1(E, sigma2, k_min, epsilon) -> Verdict:
    """Follow the listing of Algorithm 1 line by line over recorded E and sigma^2.

    Where it looks back before iteration 0, the comparison is false. Line 15 has the
    sign of the text (decrease, not slope). Without a peak line 12 takes the sharpest
    iterate since the transient, of equal ones the latest.
    """
    k, LastSharpnessPeakIter = 0, 0  # line 1
    detected_H = detected_L = no_peak = False
    while not detected_H and not detected_L:  # line 2
        if k == len(E):
            return Verdict(None, False, False, LastSharpnessPeakIter, False)
        if k >= 2 and sigma2[k] < sigma2[k - 1] and sigma2[k - 2] < sigma2[k - 1]:
            LastSharpnessPeakIter = k - 1  # lines 6-8
        if k > k_min and sigma2[k] < sigma2[k - 1]:  # line 10
            detected_L = True  # line 11
            if LastSharpnessPeakIter == 0:
                no_peak = True
                since = range(max(k_min, 0), k)
                LastSharpnessPeakIter = max(since, key=lambda j: (sigma2[j], j))
        if k > 0 and (E[k - 1] - E[k]) / E[k - 1] < epsilon:  # line 15
            detected_H = True  # line 16
        k = k + 1
    return Verdict(k - 1, detected_L, detected_H, LastSharpnessPeakIter, no_peak)

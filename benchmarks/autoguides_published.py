"""Table 1 of Baudart and Mandel (2021), Automatic guide generation for Stan via NumPyro: the largest relative errors.

For each posterior, in the order of `GUIDES`: the largest |mean error| over all numbers in standard deviations of the
reference draws, after 100,000 steps of Adam with a step size of 0.0005; None where the run ended in an error.
"""

from __future__ import annotations

GUIDES = (
    "AutoBNAFNormal", "AutoDelta", "AutoDiagonalNormal", "AutoIAFNormal", "AutoLaplaceApproximation",
    "AutoLowRankMultivariateNormal", "AutoMultivariateNormal", "AutoNormal", "Stan mean-field", "Stan full-rank",
)  # fmt: skip
# What each guide succeeded on, as the paper's table adds it up.
SUCCESSES = (25, 21, 22, 16, 20, 14, 21, 22, 4, 5)
ERROR = "x"  # how a run that ended in an error is written here

TABLE = """
arK-arK 0.26 0.44 0.09 0.22 0.38 0.06 0.13 0.17 x 0.33
arma-arma11 x 0.26 x x 0.16 x x x x x
sblri-blr 1.96 0.50 0.70 2.46 0.38 0.64 0.76 0.64 x x
sblrc-blr 1.05 0.51 0.18 1.52 0.40 0.55 1.58 0.27 x x
dogs-dogs 0.10 0.12 0.13 0.16 0.11 0.05 0.08 0.13 0.38 0.80
dogs-dogs_log x 0.12 0.07 x 0.12 0.03 0.05 0.07 0.93 x
earnings-earn_height 0.30 24.65 23.88 x 24.26 24.21 24.08 24.55 x 18.71
eight_schools-eight_schools_centered 0.13 1.13 0.65 0.07 1.13 0.52 0.60 0.62 1.17 1.39
eight_schools-eight_schools_noncentered 0.07 1.13 0.22 0.07 13.03 0.17 0.18 0.26 0.22 0.21
garch-garch11 2.68 1.15 2.68 2.71 0.74 1.80 1.68 2.69 0.81 0.34
bball_drive_event_0-hmm_drive_0 0.28 290.68 0.29 x 0.42 0.43 0.27 0.10 0.48 14.31
bball_drive_event_1-hmm_drive_1 0.53 0.59 0.52 0.77 768.80 0.52 0.63 0.48 9.68 4.59
hmm_example-hmm_example 0.16 0.37 0.46 x 0.25 0.05 0.30 0.36 1.73 0.55
kidiq-kidscore_interaction 0.62 0.63 2.47 0.82 0.49 2.46 2.21 2.47 2.61 x
kidiq_with_mom_work-kidscore_interaction_c 0.73 48.31 46.66 0.23 46.42 48.03 49.68 46.71 44.70 56.46
kidiq_with_mom_work-kidscore_interaction_c2 0.67 35.30 34.10 0.33 33.91 34.35 35.09 34.13 x 93.98
kidiq_with_mom_work-kidscore_interaction_z 0.70 48.03 46.41 0.44 46.15 48.49 49.75 46.45 2.87 48.65
kidiq_with_mom_work-kidscore_mom_work 0.65 16.47 15.94 0.17 15.79 16.05 16.04 15.95 1.94 7.23
kidiq-kidscore_momhs 0.19 16.61 15.84 x 15.66 15.96 16.02 15.83 6.76 2.18
kidiq-kidscore_momhsiq 0.27 0.17 2.44 0.25 0.12 2.28 1.82 2.44 x 4.07
kidiq-kidscore_momiq 0.10 0.15 2.20 x 0.12 2.13 1.75 2.21 3.28 3.65
kilpisjarvi_mod-kilpisjarvi 2.12 1.99 1.97 x 1.95 1.98 7.00 1.98 x x
earnings-log10earn_height 0.12 0.09 0.17 x 0.08 0.15 0.56 0.19 x x
earnings-logearn_height 0.13 0.09 1.08 x 0.08 1.11 1.21 1.08 x x
earnings-logearn_height_male 0.25 0.11 4.22 0.16 0.08 4.06 3.74 4.21 1.33 10.73
earnings-logearn_interaction 0.56 0.12 5.52 0.81 0.11 5.55 5.99 5.51 x x
earnings-logearn_interaction_z 0.67 0.12 0.27 0.42 0.10 0.10 0.27 0.15 1.90 1.28
earnings-logearn_logheight_male 0.45 0.12 1.22 0.54 0.09 1.21 1.17 1.22 0.66 x
mesquite-logmesquite 0.15 0.93 0.03 0.22 0.80 0.05 0.06 0.05 x 0.11
mesquite-logmesquite_logva 0.34 0.65 0.06 0.37 0.52 0.05 0.05 0.05 0.14 0.05
mesquite-logmesquite_logvas 0.14 0.93 0.13 0.27 0.80 0.11 0.06 0.13 x 0.09
mesquite-logmesquite_logvash 0.22 0.84 0.08 0.26 0.72 0.06 0.08 0.05 x x
mesquite-logmesquite_logvolume 0.32 0.45 0.13 x 0.33 0.11 0.13 0.04 0.22 0.08
low_dim_gauss_mix-low_dim_gauss_mix 0.68 0.13 0.22 0.75 0.08 0.21 0.23 0.27 63.08 62.71
mesquite-mesquite 0.16 8.12 11.02 6.39 7.89 11.80 11.25 10.94 23.32 17.18
nes1988-nes 0.18 0.27 0.06 0.33 0.24 0.33 0.06 0.11 0.88 2.09
nes1972-nes 0.19 0.21 0.05 0.33 0.18 0.38 0.05 0.15 0.27 1.30
nes1984-nes 0.16 0.23 0.04 0.30 0.20 0.36 0.04 0.14 1.25 1.31
nes1980-nes 0.14 0.29 0.03 0.19 0.25 0.31 0.03 0.13 1.05 0.74
nes2000-nes 0.12 0.37 0.04 0.19 0.32 0.25 0.03 0.12 1.01 1.28
nes1976-nes 0.19 0.24 0.05 0.32 0.21 0.35 0.06 0.13 2.61 1.89
nes1992-nes 0.18 0.23 0.05 0.27 0.21 0.35 0.05 0.13 2.19 0.85
nes1996-nes 0.17 0.25 0.04 0.25 0.21 0.34 0.05 0.14 1.29 2.54
"""


def _row(line: str) -> tuple[str, dict[str, float | None]]:
    name, *values = line.split()
    return name, {guide: None if value == ERROR else float(value) for guide, value in zip(GUIDES, values, strict=True)}


PUBLISHED: dict[str, dict[str, float | None]] = dict(_row(line) for line in TABLE.split("\n") if line)

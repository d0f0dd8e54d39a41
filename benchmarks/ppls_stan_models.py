"""The models of `benchmarks.ppls` in Stan, with the sites of the zoo's models.

Counts are vectors and their log density is written out, since versions of Stan write arrays of whole numbers in
different ways.
"""

from __future__ import annotations

from typing import Any

from benchmarks.ppls_models import data_of

# For each model the names of its data, in the order of its arguments, and the program. N and F are the first array's
# sizes.
STAN_MODELS: dict[str, tuple[tuple[str, ...], str]] = {
    "normal_normal": (
        ("y",),
        """
data { int N; vector[N] y; }
parameters { real mu; }
model { target += normal_lpdf(mu | 5, 2) + normal_lpdf(y | mu, 0.22); }
""",
    ),
    "gamma_poisson": (
        ("deaths",),
        """
data { int N; vector[N] deaths; }
parameters { real<lower=0> rate; }
model { target += gamma_lpdf(rate | 2, 2) + sum(deaths * log(rate) - rate - lgamma(deaths + 1)); }
""",
    ),
    "logistic_regression": (
        ("features", "labels"),
        """
data { int N; int F; matrix[N, F] features; vector[N] labels; }
parameters { vector[F] coefficients; real intercept; }
model {
  vector[N] logits = features * coefficients + intercept;
  target += normal_lpdf(coefficients | 0, 1) + normal_lpdf(intercept | 0, 1);
  target += dot_product(labels, logits) - sum(log1p_exp(logits));
}
""",
    ),
    "robust_regression": (
        ("x", "y"),
        """
data { int N; vector[N] x; vector[N] y; }
parameters { real intercept; real slope; real<lower=0> scale; }
model {
  target += normal_lpdf(intercept | 0, 10) + normal_lpdf(slope | 0, 10) + normal_lpdf(scale | 0, 5) + log(2);
  target += student_t_lpdf(y | 4, intercept + slope * x, scale);
}
""",
    ),
    "eight_schools_non_centred": (
        ("y", "sigma"),
        """
data { int N; vector[N] y; vector[N] sigma; }
parameters { real mu; real<lower=0> tau; vector[N] eta; }
model {
  target += normal_lpdf(mu | 0, 5) + cauchy_lpdf(tau | 0, 5) + log(2) + normal_lpdf(eta | 0, 1);
  target += normal_lpdf(y | mu + tau * eta, sigma);
}
""",
    ),
}


def stan_model(model: str) -> tuple[str, dict[str, Any]]:
    """Stan's program, and its data."""
    names, program = STAN_MODELS[model]
    values = data_of(model)
    sizes = dict(zip("NF", values[0].shape, strict=False))
    return program, sizes | dict(zip(names, values, strict=True))

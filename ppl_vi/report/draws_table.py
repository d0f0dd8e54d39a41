"""What was measured of draws, as a listing for a terminal: every metric with its standard error, then each number."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

import numpy as np

from ppl_vi.metrics.draws.scorecard import DrawsScorecard
from ppl_vi.metrics.estimate import Estimate
from ppl_vi.report.numbers import three_digits

# The metrics in the order of the listing, and what each is called there.
LISTED = {
    "reverse_kl": "reverse KL",
    "elbo": "ELBO",
    "importance_log_evidence": "log p(x) by importance sampling",
    "khat": "k-hat",
    "ess": "effective draws by importance",
    "mean_error": "mean error (worst)",
    "sd_ratio": "sd ratio (worst)",
    "coverage_90": "90% interval covers (worst)",
    "quantile_error": "quantile error (worst)",
    "wasserstein": "Wasserstein-1 (worst)",
    "relative_covariance_error": "relative covariance error",
    "energy_distance": "energy distance",
    "mmd_squared": "MMD squared",
    "c2st": "C2ST (0.5 is none told apart)",
    "leaked_mass": "leaked mass",
}
BY_NUMBER = {"mean_error": "mean error", "sd_ratio": "sd ratio", "coverage_90": "covers", "wasserstein": "W1"}
MOST_NUMBERS = 20
WIDTH, COLUMNS = 32, 80  # of the names of metrics, and of the whole


def listing(card: DrawsScorecard) -> str:
    """The whole measurement as text of at most 80 columns, but for long names of latents."""
    return "\n".join(_lines(card))


def _lines(card: DrawsScorecard) -> Iterator[str]:
    truth, draws = card.truth, card.approximation
    evidence, error = float(truth.log_evidence[0]), truth.log_evidence_error + 2 * truth.log_evidence_std_error
    system = f" by {draws.system}" if draws.system else ""
    num = f"{draws.num_chains} x {draws.num_draws} draws, worth some {card.num_independent:.0f} independent ones"
    yield fill(f"{draws.name or 'draws'}{system}: {num}", COLUMNS)
    log_evidence = f"log p(x) = {evidence:.6f} ± {error[0]:.1g} nats, {truth.method}, {truth.grade}"
    yield fill(f"{truth.target.name}    {log_evidence}", COLUMNS)
    if not truth.trusted.all():
        why = "; ".join(filter(None, truth.reasons))
        yield fill(f"Do not rely on what rests on the truth, which is uncertified: {why}", COLUMNS)
    yield ""
    reasons: dict[str, list[str]] = {}
    for name, called in LISTED.items():
        estimate = card.scores.get(name)
        if estimate is None:
            continue
        if np.isnan(estimate.value[0, 0]):
            reasons.setdefault(estimate.reason, []).append(called.partition(" (")[0])
            continue
        why = f"  {estimate.reason}" if np.isinf(estimate.value[0, 0]) else ""
        noise = f" (noise alone: {card.noise[name]:.2g})" if name in card.noise else ""
        yield fill(f"{called:{WIDTH}}{shown(estimate)}{noise}{why}", COLUMNS, subsequent_indent=" " * WIDTH)
    yield from _by_number(card)
    if reasons or card.remarks:
        yield ""
    for reason, names in reasons.items():
        yield fill(f"Not known: {', '.join(names)}: {reason}.", COLUMNS)
    for remark in card.remarks:
        yield fill(f"Remark: {remark}.", COLUMNS)


def shown(estimate: Estimate) -> str:
    """The value, its standard error and, where that is larger, its numerical error."""
    value, std_error = float(estimate.value[0, 0]), float(estimate.std_error[0, 0])
    error = float(estimate.error[0, 0])
    unit = "" if estimate.unit in ("1", "z") else f" {estimate.unit}"
    spread = f" ± {std_error:.2g}" if std_error > 0 else ""
    off = f" (a finite sample: up to {error:.2g})" if np.isfinite(error) and error > max(std_error, 0) > 0 else ""
    return f"{three_digits(value) if abs(value) < 1000 else f'{value:.1f}'}{spread}{unit}{off}"


def _by_number(card: DrawsScorecard) -> Iterator[str]:
    if card.marginals is None or len(card.marginals.names) < 2:
        return
    names = card.marginals.names
    first = max(map(len, names[:MOST_NUMBERS])) + 2
    yield ""
    yield f"{'':{first}}" + "".join(f"{heading:>17}" for heading in BY_NUMBER.values())
    for k, number in enumerate(names[:MOST_NUMBERS]):
        cells = [card.marginals.scores[name][k] for name in BY_NUMBER]
        texts = [f"{float(e.value[0, 0]):.3g} ± {float(e.std_error[0, 0]):.1g}" for e in cells]
        yield f"{number:{first}}" + "".join(f"{text:>17}" for text in texts)
    if len(names) > MOST_NUMBERS:
        yield f"and {len(names) - MOST_NUMBERS} more numbers: to_dataframe() has them all"

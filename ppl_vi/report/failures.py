"""Says in words which checks of a truth failed; their figures stand below."""

from __future__ import annotations

# What it means that a check failed, by words of its reason in `Truth.reasons`, the gravest first. Where the meaning of
# one comprises that of another, the other is left out.
MEANINGS: dict[str, str] = {
    "chains stay in separate modes": "several modes: the chains disagree",
    "split R-hat": "the chains disagree",
    "given up after a pilot run": "the chains move too slowly",
    "effective sample size": "the chains move too slowly",
    "correlation of a draw with the next": "the chains move too slowly",
    "divergent transitions": "trajectories diverge where the posterior is too sharp for them",
    "E-FMI": "the chains hardly reach the tails",
    "difference of bridge and importance sampling": "two estimates of log p(x) disagree",
    "joint standard error of bridge": "log p(x) is too noisy",
    "k-hat of the importance weights": "the density fitted to the draws misses a part of the posterior",
    "closed form": "the closed form says otherwise",
    "gave up": "the quadrature gave up",
    "estimated error of the tree": "the quadrature is not exact enough",
    "tree of bricks against": "two quadrature rules disagree",
    "outside the box": "the box of integration leaves out mass",
    "at modes and scanned points": "the quadrature missed a peak",
    "by importance sampling, standard errors off": "quadrature and importance sampling disagree",
    "Hamiltonian Monte Carlo, standard errors off": "quadrature and chains disagree",
}
COMPRISED = {"several modes: the chains disagree": ("the chains disagree", "the chains move too slowly")}


def in_words(reason: str) -> str:
    """What failed, in words: "several modes: the chains disagree"; the reason itself where no words are known."""
    meant = list(dict.fromkeys(meaning for words, meaning in MEANINGS.items() if words in reason))
    for meaning in tuple(meant):
        meant = [one for one in meant if one not in COMPRISED.get(meaning, ())]
    return "; ".join(meant) or reason or "a check failed"

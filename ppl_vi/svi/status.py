"""How a fit ended, in one word."""

from enum import StrEnum


class Status(StrEnum):
    """The state of one fit. The values are the strings that records and saved files hold.

    Attributes:
        CONVERGED: the convergence check has shown that no nearby point is better by more than the tolerance.
        NOT_CONVERGED: the fit is still running, or its steps were used up before the check could show that.
        AS_GIVEN: no steps were taken: the guide is measured with the values that it was given with.
        DIVERGED: a step met a value that is not finite, and the fit stopped at its last finite parameters.
    """

    CONVERGED = "converged"
    AS_GIVEN = "as_given"
    NOT_CONVERGED = "not_converged"
    DIVERGED = "diverged"

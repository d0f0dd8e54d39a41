"""The truth of a model without continuous latents: log p(x) is a sum, which the target has taken already."""

from __future__ import annotations

import numpy as np
import torch

from ppl_vi.target.target import Target
from ppl_vi.truth.result import Check, Truth

# Rounding of a log density relative to its size, in units of the dtype's precision: sums of some hundred terms.
ROUNDING = 64
EXACT = "the sum goes over all values of the discrete latents, as Pyro enumerates them"


def discrete_truth(target: Target) -> Truth:
    """log p(x) of every problem of a target whose latents are all discrete, and summed out.

    A model of few combinations was compared with the sum over them one by one when its target was made.
    """
    rows = [target.row(problem) for problem in range(target.num_problems)]
    with torch.no_grad():
        value = torch.stack([target.log_joint_of_row({}, *row) for row in rows]).cpu().double().numpy()
    error = ROUNDING * torch.finfo(target.dtype).eps * (1 + np.abs(value))
    finite = Check("problems whose log p(x) is no number", float((~np.isfinite(value)).sum()), 0.0)
    reasons = tuple("" if np.isfinite(one) else f"the sum is {one}" for one in value)
    return Truth(
        target,
        "sum over discrete latents",
        value,
        error,
        (finite,),
        reasons=reasons if any(reasons) else (),
        grade="uncertified" if any(reasons) else "checked",
        assumptions=(EXACT,),
    )

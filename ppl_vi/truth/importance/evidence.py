"""log p(x) from importance draws, with the components of the proposal as control variates."""

from __future__ import annotations

import torch

from ppl_vi.numerics.weights import EvidenceEstimate
from ppl_vi.truth.importance.proposal import Proposal, ProposalDraws


def evidence_of(draws: ProposalDraws, proposal: Proposal) -> EvidenceEstimate:
    """log p(x) and its standard error.

    For each component q_k, E_q[q_k / q - 1] = 0. So the weights are regressed on these ratios: the constant of the
    regression is p(x), and its standard error comes from the residuals. They lack what the weights vary because the
    proposal has components that the posterior has not.

    Source: Owen and Zhou (2000), Safe and effective importance sampling.
    """
    shift = float(draws.log_ratio.max())
    weights = (draws.log_ratio - shift).exp()
    ratios = (proposal.component_log_prob(draws.u) - draws.log_proposal[:, None]).exp() - 1
    ratios = ratios[:, 1:]  # the shares of all add up to q, so one of the ratios follows from the others
    design = torch.cat([torch.ones_like(ratios[:, :1]), ratios], 1)
    inverse = torch.linalg.pinv(design)
    solution = inverse @ weights
    residual = weights - design @ solution
    variance = residual.square().sum() / (len(weights) - design.shape[1]) * inverse[0].square().sum()
    return EvidenceEstimate(shift + float(solution[0].log()), float(variance.sqrt() / solution[0]))


def with_unseen_mass(found: EvidenceEstimate, num: int) -> EvidenceEstimate:
    """The same with a standard error of at least 1 / num, `num` being how many draws it is from.

    Where the proposal is exactly the density that it has seen, all weights are equal and tell of no error at all. But
    mass that none of the draws has met stays unseen: with a uniform prior for its share, that has the mean 1 / num.
    """
    return EvidenceEstimate(found.value, max(found.std_error, 1 / num))

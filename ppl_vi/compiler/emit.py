"""TODO."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ppl_vi.compiler.values import (
    WRITTEN_OUT,
    Item,
    Loop,
    Ref,
    _reads,
    _writes,
)

MOST_BYTES = 2**26  # of a group's values: beyond the second cache they still run several times faster than batched
MOST_GROUPS, GROUPED = 4, 1000  # groups whose steps alternate, so that one's arithmetic fills the other's waits
_FRAME = """{prelude}
{tables}
struct Group {{ {fields} }};
extern "C" const int64_t frame_bytes = {frame_bytes};  // at most about so many on the stack of `advance`
// Of what `advance` reads: bytes of a number, parameters, arrays of data and of noise, and the numbers in each of them.
extern "C" const int64_t reads[] = {{{reads}}};

// The last vector of fits is full, too: it begins among those of the last but one, which gives the same numbers twice.
inline int64_t place(int64_t begin, int g, int64_t num_fits) {{
    const int64_t next = begin + g * LANES, last = num_fits - VALID;
    return next < last ? next : last;
}}

extern "C" void advance(int64_t num_steps, int64_t num_problems, int64_t num_fits, const Real* scalars,
                        const bool* alive_in, const Real* theta_in, const Real* first_in, const Real* second_in,
                        const Real* total_in, const Real* unit_in, bool* alive_out, Real* out, Real* bounds,
                        const Real* const* data, const Real* const* noise) {{
constexpr int most = {groups};
Group group[most];
for (int64_t b = 0; b < num_problems; ++b)
for (int64_t begin = 0; begin < num_fits; begin += most * LANES) {{
const int64_t left = (num_fits - begin + LANES - 1) / LANES;
const int num_groups = left < most ? left : most;
{data}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
{loads}
alive[0] = load(alive_in + b * num_fits + r);
{prologue}
{keep}
}}
for (int64_t t = 0; t < num_steps; ++t) {{
const Real scalar_0[] = {{scalars[t]}}, scalar_1[] = {{scalars[num_steps + t]}};
const Real scalar_2[] = {{scalars[2 * num_steps + t]}};
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
{kept}
{noise}
{body}
store({bound}, bounds + (t * num_problems + b) * num_fits + r);
{renewed}
alive[0] = {alive};
}}
}}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_fits);
{state}
store(alive[0], alive_out + b * num_fits + r);
{stores}
}}
}}
}}
"""


def _passes(num: int, statements: Callable[[str], list[str]]) -> list[str]:
    """Statements for each of `num` elements: written out where they are few, which lets arrays live in registers."""
    if num > WRITTEN_OUT:
        return [f"for (int i = 0; i < {num}; ++i) {{", *statements("i"), "}"]
    return [line for i in range(num) for line in ("{", *statements(str(i)), "}")]


def _group(left: Sequence[Item], num: int, ready: Callable[[str], bool]) -> list[Loop]:
    """Loops of one length that can run as one: each reads of the others its own element alone."""
    group: list[Loop] = []
    inside: set[str] = set()
    identity = torch.arange(num)

    def fits(loop: Loop) -> bool:
        for operand in loop.operands:
            if not isinstance(operand, Ref) or ready(operand.array):
                continue
            if operand.array not in inside or not torch.equal(operand.index.reshape(-1), identity):
                return False
        return True

    for item in left:  # they are in an order in which each comes after what it reads
        if isinstance(item, Loop) and item.num == num and fits(item):
            group.append(item)
            if item.into is None:
                inside.add(item.out)
    return group


def _needed(items: Sequence[Item], wanted: set[str]) -> list[Item]:
    """Those that something wanted depends on."""
    wanted, kept = set(wanted), []
    for item in reversed(items):
        if any(name in wanted for name, _, _ in _writes(item)):
            kept.append(item)
            wanted |= _reads(item)
    return kept[::-1]


def _number(value: float) -> str:
    if math.isnan(value):
        return "Real(NAN)"
    if math.isinf(value):
        return "Real(INFINITY)" if value > 0 else "Real(-INFINITY)"
    return f"Real({value!r})"


def _literal(value: Any, want: str) -> str:
    if want == "M":
        return f"every({int(bool(value))})"
    return f"all({_number(float(value))})"

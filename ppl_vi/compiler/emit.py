"""The C++ of a translated step: one function that takes all steps of all lanes of all problems.

A few vectors of lanes, a group each, take all steps before the next vectors begin. So what is carried from step to step
stays in the processor's cache, and only noise and results go through memory. Loops over the same number of elements are
fused into one.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppl_vi.compiler.schedule import scheduled
from ppl_vi.compiler.text import passes
from ppl_vi.compiler.translate import Translation
from ppl_vi.compiler.values import Array, Item, Ref, UnsupportedError, Value, reads, writes
from ppl_vi.compiler.vectors import lanes_per_vector, prelude

# The values of one step may take at most this many bytes. By measurement larger steps run faster by torch's operations,
# so they are not translated.
MAX_STEP_BYTES = 2**26
# At most this many groups take each step in turn, so that the processor has independent arithmetic to do while one
# group waits for a result. Together they hold at most MAX_GROUPED_ELEMENTS elements of arrays, to stay in the cache.
MAX_GROUPS = 4
MAX_GROUPED_ELEMENTS = 1000

FRAME = """{prelude}
{tables}
struct Group {{ {fields} }};
extern "C" const int64_t frame_bytes = {frame_bytes};  // about how much of the stack `advance` takes

// The first lane of a group. The last group is a full vector, too: it overlaps the one before, and computes the lanes
// that both have twice, to the same numbers.
inline int64_t place(int64_t begin, int g, int64_t num_lanes) {{
    const int64_t next = begin + g * VALID, last = num_lanes - VALID;
    return next < last ? next : last;
}}

extern "C" void advance(int64_t num_steps, int64_t num_problems, int64_t num_lanes, const Real* scalars,
                        const void* const* carried, const void* const* fixed, const Real* const* data,
                        const Real* const* noise, const Real* const* prepared, const void* const* rows,
                        const int64_t* row_counts, void* const* renewed, Real* const* results) {{
constexpr int most = {groups};
Group group[most];
for (int64_t b = 0; b < num_problems; ++b)
for (int64_t begin = 0; begin < num_lanes; begin += most * VALID) {{
const int64_t left = (num_lanes - begin + VALID - 1) / VALID;
const int num_groups = left < most ? left : most;
{data}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_lanes);
{state}
{loads}
{prologue}
{hoist}
}}
for (int64_t t = 0; t < num_steps; ++t) {{
{scalars}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_lanes);
{state}
{hoisted}
{noise}
{body}
{results}
{renewed}
}}
}}
for (int g = 0; g < num_groups; ++g) {{
const int64_t r = place(begin, g, num_lanes);
{state}
{stores}
}}
}}
}}
"""


def source_text(translation: Translation, num_lanes: int) -> str:
    """C++ whose function `advance` takes steps of many lanes.

    Args:
        translation: of the step.
        num_lanes: how many lanes are to be served. Where these fill a vector, the code serves all larger numbers, too.

    Raises:
        UnsupportedError: the values of the step take more than `MAX_STEP_BYTES`.
    """
    dtype, by_rows = translation.dtype, translation.has_sweeps
    lanes = lanes_per_vector(num_lanes, dtype, by_rows)
    wanted = {value.array for value in (*translation.renewed, *translation.results) if isinstance(value, Ref)}
    items = _needed(translation.items, wanted)
    invariant, per_step = _split(items, translation.varying)
    later = {name for item in per_step for name in reads(item)} | wanted
    hoisted = [array for item in invariant for array in writes(item) if array.name in later]
    state = (*translation.carried, *translation.fixed)
    total = sum(array.num for item in items for array in writes(item))
    held = sum(array.num for array in state)
    if (total + held) * lanes * dtype.itemsize > MAX_STEP_BYTES:
        raise UnsupportedError(f"a step of {total} numbers")
    groups = max(1, min(MAX_GROUPS, MAX_GROUPED_ELEMENTS // max(total, 1)))
    drawn = sum(array.num for array in translation.noise)
    numbers = total + drawn + groups * (held + sum(array.num for array in hoisted))
    body = scheduled(per_step, wanted, translation.tables)
    prologue = scheduled(invariant, later, translation.tables)
    moves = _memory(translation, hoisted)
    return FRAME.format(
        prelude=prelude(dtype, num_lanes, by_rows),
        tables="\n".join(translation.tables.definitions),
        frame_bytes=numbers * lanes * dtype.itemsize,
        groups=groups,
        prologue="\n".join(prologue),
        body="\n".join(body),
        **moves,
    )


def _needed(items: Sequence[Item], wanted: set[str]) -> list[Item]:
    """The items that the wanted arrays depend on."""
    wanted, found = set(wanted), []
    for item in reversed(items):
        if any(array.name in wanted for array in writes(item)):
            found.append(item)
            wanted |= reads(item)
    return found[::-1]


def _split(items: Sequence[Item], varying: frozenset[str]) -> tuple[list[Item], list[Item]]:
    """The items whose arrays are the same in all steps, and the others."""
    per_step = {item for item in items if any(array.name in varying for array in writes(item))}
    return [item for item in items if item not in per_step], [item for item in items if item in per_step]


def _memory(translation: Translation, hoisted: Sequence[Array]) -> dict[str, str]:
    """The parts of the frame that move numbers; `hoisted` are the arrays that are computed once for all steps."""
    state = (*translation.carried, *translation.fixed)
    return {
        "fields": " ".join(f"{array.kind} {array.name}[{array.num}];" for array in (*state, *hoisted)),
        "state": "\n".join(f"{array.kind}* const {array.name} = group[g].{array.name};" for array in state),
        "hoisted": "\n".join(f"const {array.kind}* const {array.name} = group[g].{array.name};" for array in hoisted),
        "hoist": "\n".join(f"std::memcpy(group[g].{a.name}, {a.name}, sizeof {a.name});" for a in hoisted),
        "scalars": "\n".join(
            f"const Real scalars_{k}[] = {{scalars[{k} * num_steps + t]}};" for k in range(translation.num_scalars)
        ),
        "data": "\n".join(
            f"const Real* {array.name} = {role}[{k}] + b * {array.num};"
            for role, arrays in (("data", translation.data), ("prepared", translation.prepared))
            for k, array in enumerate(arrays)
        ),
        "loads": "\n".join(_loads(translation)),
        "noise": "\n".join(_draws(translation.noise)),
        "results": "\n".join(_results(translation)),
        "renewed": "\n".join(_renewals(translation)),
        "stores": "\n".join(_stores(translation.carried)),
    }


def _element_type(array: Array) -> str:
    return "bool" if array.kind == "M" else "Real"


def _loads(translation: Translation) -> list[str]:
    lines: list[str] = []
    for role, arrays in (("carried", translation.carried), ("fixed", translation.fixed)):
        for k, array in enumerate(arrays):

            def load(i: str, array: Array = array, role: str = role, k: int = k) -> list[str]:
                given = f"static_cast<const {_element_type(array)}*>({role}[{k}])"
                return [f"{array.name}[{i}] = load({given} + (b * {array.num} + {i}) * num_lanes + r);"]

            lines += passes(array.num, load)
    return lines


def _draws(noise: Sequence[Array]) -> list[str]:
    lines: list[str] = []
    for k, array in enumerate(noise):

        def load(i: str, array: Array = array, k: int = k) -> list[str]:
            place = f"((t * num_problems + b) * {array.num} + {i}) * num_lanes + r"
            return [f"{array.name}[{i}] = load(noise[{k}] + {place});"]

        lines += [f"V {array.name}[{array.num}];", *passes(array.num, load)]
    return lines


def _results(translation: Translation) -> list[str]:
    lines: list[str] = []
    for k, value in enumerate(translation.results):
        num = (value.index if isinstance(value, Ref) else value).numel()

        def store(i: str, value: Value = value, k: int = k, num: int = num) -> list[str]:
            place = f"((t * num_problems + b) * {num} + {i}) * num_lanes + r"
            return [f"store({translation.tables.element(value, 'V', (i,))}, results[{k}] + {place});"]

        lines += passes(num, store)
    return lines


def _renewals(translation: Translation) -> list[str]:
    lines: list[str] = []
    for array, value in zip(translation.carried, translation.renewed, strict=True):

        def renew(i: str, array: Array = array, value: Value = value) -> list[str]:
            return [f"{array.name}[{i}] = {translation.tables.element(value, array.kind, (i,))};"]

        lines += passes(array.num, renew)
    return lines


def _stores(carried: Sequence[Array]) -> list[str]:
    lines: list[str] = []
    for k, array in enumerate(carried):

        def store(i: str, array: Array = array, k: int = k) -> list[str]:
            to = f"static_cast<{_element_type(array)}*>(renewed[{k}])"
            return [f"store({array.name}[{i}], {to} + (b * {array.num} + {i}) * num_lanes + r);"]

        lines += passes(array.num, store)
    return lines

// The toy, z ~ Exponential(1) and x | z ~ Normal(z, 1): its posterior is Normal(x - 1, 1) cut off below 0, and
// log p(x) = 1/2 - x + log Phi(x - 1).

function logEvidence(x) {
  return 0.5 - x + logNdtr(x - 1);
}

function posterior(x) {
  return truncatedNormal([x - 1, 1]);
}

// E_q[log p(x, z)] + entropy, in nats: the log joint is quadratic in z, so that two moments are enough.
function elboOf(x, { mean, square, entropy, logLeak }) {
  return logLeak === undefined ? (x - 1) * mean - 0.5 * (square + x * x + LOG_2PI) + entropy : -Infinity;
}

// KL(p || q) by quadrature over z.
function forwardKl(x, member) {
  const p = posterior(x);
  let cross = 0;
  for (const { z, weight } of HALF_LINE) {
    const density = Math.exp(p.logDensity(z));
    if (density > 0) cross -= weight * density * member.logDensity(z);
  }
  return cross - p.entropy;
}

const sdOf = ({ mean, square }) => Math.sqrt(square - mean * mean);

const X = { name: "Observation x", low: -4, high: 6, step: 0.05, start: 1.5, isLog: false };

// A parameter's place on its slider, and back.
const placeOf = (parameter, value) => (parameter.isLog ? Math.log10(value) : value);
const valueAt = (parameter, place) => (parameter.isLog ? 10 ** place : place);
// A slider's ends are whole steps, so that a parameter can be exactly 1.
const wholeStep = (parameter, value) => Math.round(placeOf(parameter, value) / parameter.step) * parameter.step;
const lowest = (parameter) => wholeStep(parameter, parameter.low);
const highest = (parameter) => wholeStep(parameter, parameter.high);
const membersAt = (family, places) => family.at(places.map((place, i) => valueAt(family.parameters[i], place)));

// The family's members on a grid of the sliders' places, once for all x: only moments and entropies are needed.
const GRID = { 1: [401], 2: [81, 61] };

function tableOf(family) {
  if (!family.table) {
    const sizes = GRID[family.parameters.length];
    const axes = family.parameters.map((one, i) =>
      Array.from({ length: sizes[i] }, (_, j) => lowest(one) + (highest(one) - lowest(one)) * j / (sizes[i] - 1)));
    const places = axes.length === 1 ? axes[0].map((a) => [a]) : axes[1].flatMap((b) => axes[0].map((a) => [a, b]));
    family.table = { axes, places, members: places.map((place) => membersAt(family, place)) };
  }
  return family.table;
}

// KL(q || p) of every member in the table.
function landscapeOf(x, family) {
  const evidence = logEvidence(x);
  return Float64Array.from(tableOf(family).members, (member) => evidence - elboOf(x, member));
}

// The family's best member in reverse KL, or null where all have the ELBO -inf: the best of the table, then a search.
function bestOf(x, family) {
  if (family.at(family.parameters.map((one) => one.start)).logLeak !== undefined) return null;
  const { axes, places, members } = tableOf(family);
  let found = 0;
  members.forEach((member, i) => {
    if (elboOf(x, member) > elboOf(x, members[found])) found = i;
  });
  const end = minimize((at) => -elboOf(x, membersAt(family, at)), places[found], axes.map((axis) => axis[1] - axis[0]));
  const values = unfolded(x, family, end.map((place, i) => valueAt(family.parameters[i], place)));
  const elbo = elboOf(x, family.at(values));
  return { values, elbo, kl: logEvidence(x) - elbo };
}

// A folded normal with loc >= 0; with loc = 0 and the same mean square where that is as good, because the ELBO is so flat
// there that the search ends anywhere near.
function unfolded(x, family, [m, s]) {
  if (family !== FAMILIES.folded_normal) return s === undefined ? [m] : [m, s];
  const half = [0, Math.hypot(m, s)];
  return elboOf(x, family.at(half)) > elboOf(x, family.at([m, s])) - 1e-12 ? half : [Math.abs(m), s];
}

// All numbers that are shown of a member, in nats.
function numbersOf(x, family, values) {
  const member = family.at(values), truth = posterior(x);
  const evidence = logEvidence(x), elbo = elboOf(x, member);
  return {
    evidence, elbo,
    reverseKl: evidence - elbo,
    forwardKl: forwardKl(x, member),
    mean: member.mean, sd: sdOf(member), posteriorMean: truth.mean, posteriorSd: sdOf(truth),
    logLeak: member.logLeak,
  };
}

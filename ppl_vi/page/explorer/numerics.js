// Special functions, integrals and a search, in double precision.

const LOG_2PI = Math.log(2 * Math.PI);

// exp(t^2) erfc(t) for t >= 0: a series of positive terms below 2, a continued fraction from there. Both are right to
// 1e-13 of the value.
function erfcx(t) {
  if (t < 2) {
    let term = t, sum = t;
    for (let k = 1; term > 1e-17 * sum; k++) {
      term *= 2 * t * t / (2 * k + 1);
      sum += term;
    }
    return Math.exp(t * t) - 2 / Math.sqrt(Math.PI) * sum;
  }
  let fraction = t;
  for (let k = 60; k > 0; k--) fraction = t + k / 2 / fraction;
  return 1 / (Math.sqrt(Math.PI) * fraction);
}

// log(1 - Phi(a)) + a^2/2 with the standard normal's cdf Phi: the part that does not cancel far out in the tail.
function logTail(a) {
  return a >= 0
    ? Math.log(erfcx(a / Math.SQRT2) / 2)
    : Math.log1p(-Math.exp(-a * a / 2) * erfcx(-a / Math.SQRT2) / 2) + a * a / 2;
}

// log Phi(a).
function logNdtr(a) {
  return logTail(-a) - a * a / 2;
}

// The standard normal's density over the mass above a.
function hazard(a) {
  return Math.exp(-logTail(a) - LOG_2PI / 2);
}

// log Gamma(x) for x > 0, by Stirling's series from 12 on.
function lgamma(x) {
  let below = 0;
  for (; x < 12; x++) below += Math.log(x);
  const y = 1 / (x * x);
  const series = 1 / 12 - y * (1 / 360 - y * (1 / 1260 - y * (1 / 1680 - y * (1 / 1188 - y * 691 / 360360))));
  return (x - 0.5) * Math.log(x) - x + LOG_2PI / 2 + series / x - below;
}

// The derivative of log Gamma(x).
function digamma(x) {
  let below = 0;
  for (; x < 12; x++) below += 1 / x;
  const y = 1 / (x * x);
  const series = 1 / 12 - y * (1 / 120 - y * (1 / 252 - y * (1 / 240 - y * (1 / 132 - y * 691 / 32760))));
  return Math.log(x) - 0.5 / x - y * series - below;
}

// log(1 + exp(v)), and its inverse.
function softplus(v) {
  return v > 0 ? v + Math.log1p(Math.exp(-v)) : Math.log1p(Math.exp(v));
}

function softplusInverse(z) {
  return z + Math.log(-Math.expm1(-z));
}

// Nodes t and weights for the mean of a function of a standard normal number: the trapezoid rule, whose error falls
// exponentially with 1/spacing for the smooth functions it is used for here.
const NORMAL_NODES = Array.from({ length: 181 }, (_, i) => {
  const t = (i - 90) / 10;
  return { t, weight: Math.exp(-t * t / 2 - LOG_2PI / 2) / 10 };
});

function normalMean(f) {
  let sum = 0;
  for (const { t, weight } of NORMAL_NODES) sum += weight * f(t);
  return sum;
}

// Nodes z and weights for integrals over z > 0, with z = exp(t - exp(-t)) and the trapezoid rule in t. Logarithms at 0
// do no harm: nodes are dense there, down to z = 1e-40.
const HALF_LINE = Array.from({ length: 281 }, (_, i) => {
  const t = -4.5 + i / 32;
  const z = Math.exp(t - Math.exp(-t));
  return { z, weight: z * (1 + Math.exp(-t)) / 32 };
});

// The minimum of f, a function of one or two numbers, near a start: Nelder and Mead's simplex, begun anew once.
function minimize(f, start, steps) {
  const first = simplexSearch(f, start, steps);
  return simplexSearch(f, first, steps.map((step) => step / 50));
}

function simplexSearch(f, start, steps) {
  const num = start.length;
  const made = (point) => ({ point, value: f(point) });
  const between = (a, b, share) => made(a.map((value, i) => value + share * (b[i] - value)));
  const corners = steps.map((step, i) => start.map((value, j) => (i === j ? value + step : value)));
  const points = [start, ...corners].map(made);
  for (let round = 0; round < 200; round++) {
    points.sort((a, b) => a.value - b.value);
    const [best, worst] = [points[0], points[num]];
    if (worst.value - best.value <= 1e-15 * (1 + Math.abs(best.value))) break; // all that rounding lets one see
    const centre = start.map((_, i) => points.slice(0, num).reduce((sum, one) => sum + one.point[i], 0) / num);
    const reflected = between(centre, worst.point, -1);
    let next = reflected;
    if (reflected.value < best.value) {
      const expanded = between(centre, worst.point, -2);
      if (expanded.value < reflected.value) next = expanded;
    } else if (!(reflected.value < points[num - 1].value) || num === 1) {
      const nearer = between(centre, worst.point, reflected.value < worst.value ? -0.5 : 0.5);
      next = nearer.value < Math.min(worst.value, reflected.value) ? nearer : null;
    }
    if (next) points[num] = next;
    else for (let i = 1; i <= num; i++) points[i] = between(best.point, points[i].point, 0.5);
  }
  points.sort((a, b) => a.value - b.value);
  return points[0].point;
}

// The guide families, with the parameters that ppl_vi gives them. Only the truncated normal has its location and scale
// here, which are easier to read than the mode and curvature by which ppl_vi fits the same members.
//
// `at` makes a member of its parameters: the log density `logDensity(z)`, and of the density the mean, the mean square
// and the entropy in nats.

const loc = (low, high, start) => ({ name: "loc", low, high, step: 0.05, start, isLog: false });
// A positive number: its slider moves the decimal logarithm, from which `step` it counts.
const positive = (name, low, high, start) => ({ name, low, high, step: 0.01, start, isLog: true });

const FAMILIES = {
  truncated_normal: {
    title: "truncated normal",
    summary: "z is Normal(loc, scale), cut off below 0. It contains the posterior: KL can be 0.",
    parameters: [loc(-6, 8, 1.5), positive("scale", 0.05, 10, 0.6)],
    at: truncatedNormal,
  },
  lognormal: {
    title: "lognormal",
    summary: "log z is Normal(loc, scale): what Pyro's AutoNormal fits to a positive latent. Its density at 0 is 0.",
    parameters: [loc(-4, 3, 0.3), positive("scale", 0.03, 3, 0.4)],
    at: ([m, s]) => ({
      logDensity: (z) => -0.5 * ((Math.log(z) - m) / s) ** 2 - Math.log(z * s) - LOG_2PI / 2,
      mean: Math.exp(m + s * s / 2),
      square: Math.exp(2 * m + 2 * s * s),
      entropy: m + 0.5 + Math.log(s) + LOG_2PI / 2,
    }),
  },
  gamma: {
    title: "gamma",
    summary: "z is Gamma with a mean and a concentration.",
    parameters: [positive("mean", 0.02, 10, 2), positive("concentration", 0.1, 100, 8)],
    at: gammaMember,
  },
  weibull: {
    title: "Weibull",
    summary: "z is Weibull(scale, concentration): (z / scale)^concentration is Exponential(1).",
    parameters: [positive("scale", 0.02, 10, 2), positive("concentration", 0.2, 20, 3)],
    at: weibullMember,
  },
  half_normal: {
    title: "half-normal",
    summary: "z is |v| with v Normal(0, scale): a family of one parameter.",
    parameters: [positive("scale", 0.05, 10, 2.5)],
    at: ([s]) => ({
      logDensity: (z) => Math.LN2 - LOG_2PI / 2 - Math.log(s) - 0.5 * (z / s) ** 2,
      mean: s * Math.sqrt(2 / Math.PI),
      square: s * s,
      entropy: 0.5 + LOG_2PI / 2 - Math.LN2 + Math.log(s),
    }),
  },
  exponential: {
    title: "exponential",
    summary: "z is Exponential(rate), a family of one parameter. The posterior tends to it as x goes to −∞.",
    parameters: [positive("rate", 0.1, 20, 0.5)],
    at: ([r]) => ({
      logDensity: (z) => Math.log(r) - r * z, mean: 1 / r, square: 2 / (r * r), entropy: 1 - Math.log(r),
    }),
  },
  folded_normal: {
    title: "folded normal",
    summary: "z is |v| with v Normal(loc, scale). The members with loc and −loc are the same.",
    parameters: [loc(-8, 8, 2), positive("scale", 0.05, 10, 0.6)],
    at: foldedNormal,
  },
  softplus_normal: {
    title: "softplus-normal",
    summary: "z is log(1 + exp(v)) with v Normal(loc, scale): like a lognormal near 0, like a normal far from it.",
    parameters: [loc(-6, 8, 1.5), positive("scale", 0.05, 10, 0.6)],
    at: softplusNormal,
  },
  normal: {
    title: "normal",
    summary: "z is Normal(loc, scale) on the whole line, a common first choice. It leaks mass below 0.",
    parameters: [loc(-6, 8, 1), positive("scale", 0.05, 10, 0.8)],
    at: ([m, s]) => ({
      logDensity: (z) => -0.5 * ((z - m) / s) ** 2 - Math.log(s) - LOG_2PI / 2,
      mean: m,
      square: m * m + s * s,
      entropy: 0.5 + LOG_2PI / 2 + Math.log(s),
      logLeak: logNdtr(-m / s), // log of the mass below 0
    }),
  },
};

// With a = -loc / scale and y = z / scale, log q = -y^2/2 - a y - log(scale) - log(2 pi)/2 - logTail(a), in which
// nothing cancels far out in the tail.
function truncatedNormal([m, s]) {
  const a = -m / s, tail = logTail(a);
  const mean = s * (hazard(a) - a);
  const constant = -Math.log(s) - LOG_2PI / 2 - tail;
  return {
    logDensity: (z) => -0.5 * (z / s) ** 2 - a * z / s + constant,
    mean,
    square: s * s + m * mean,
    entropy: 0.5 + 0.5 * a * mean / s - constant,
  };
}

function gammaMember([mean, a]) {
  const rate = a / mean, constant = a * Math.log(rate) - lgamma(a);
  return {
    logDensity: (z) => constant + (a - 1) * Math.log(z) - rate * z,
    mean,
    square: mean * mean * (1 + 1 / a),
    entropy: a - Math.log(rate) + lgamma(a) + (1 - a) * digamma(a),
  };
}

function weibullMember([s, k]) {
  const EULER = 0.5772156649015329;
  return {
    logDensity: (z) => {
      const log = Math.log(z / s);
      return Math.log(k / s) + (k - 1) * log - Math.exp(k * log);
    },
    mean: s * Math.exp(lgamma(1 + 1 / k)),
    square: s * s * Math.exp(lgamma(1 + 2 / k)),
    entropy: EULER * (1 - 1 / k) + Math.log(s / k) + 1,
  };
}

// The entropy is that of v less the mean of log(1 + exp(-2 v loc / scale^2)), what is lost in the fold.
function foldedNormal([m, s]) {
  const r = Math.abs(m) / s;
  const above = 1 - Math.exp(-r * r / 2) * erfcx(r / Math.SQRT2);
  return {
    logDensity: (z) => -0.5 * (z / s - r) ** 2 + Math.log1p(Math.exp(-2 * r * z / s)) - Math.log(s) - LOG_2PI / 2,
    mean: s * (2 * Math.exp(-r * r / 2 - LOG_2PI / 2) + r * above),
    square: m * m + s * s,
    entropy: 0.5 + LOG_2PI / 2 + Math.log(s) - normalMean((t) => softplus(-2 * r * (r + t))),
  };
}

// The slope of softplus at v is exp(v - z), so the entropy is that of v plus E[v - z].
function softplusNormal([m, s]) {
  let mean = 0, square = 0;
  for (const { t, weight } of NORMAL_NODES) {
    const z = softplus(m + s * t);
    mean += weight * z;
    square += weight * z * z;
  }
  return {
    logDensity: (z) => {
      const v = softplusInverse(z);
      return -0.5 * ((v - m) / s) ** 2 - Math.log(s) - LOG_2PI / 2 - (v - z);
    },
    mean,
    square,
    entropy: 0.5 + LOG_2PI / 2 + Math.log(s) + m - mean,
  };
}

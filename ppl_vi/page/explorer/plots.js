// What is drawn: plain SVG for lines and bars, a canvas for the map of a family's members. A plot is drawn at the width
// that it has on the page, so that its text has the same size everywhere.

const signed = (text) => text.replace("-", "−");

// An ELBO or a log evidence.
function nats(value) {
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  return signed(Math.abs(value) < 1e6 ? value.toFixed(4) : value.toExponential(3));
}

// A divergence: three digits where four decimals would hide it. Below 1e-9 it is only rounding error.
function divergence(value) {
  if (!Number.isFinite(value) || value >= 0.01) return nats(value);
  return value < 1e-9 ? "<1e-9" : value.toExponential(2).replace(/e-(\d)$/, "e−$1");
}

const shown = (parameter, value) => (parameter.isLog ? value.toPrecision(3) : signed(value.toFixed(2)));

const scaled = (low, high, from, to) => (value) => from + (value - low) / (high - low) * (to - from);
const pathOf = (points) => "M" + points.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
const [MIDDLE, END, STRONG] = [' text-anchor="middle"', ' text-anchor="end"', ' class="strong"'];
const label = (a, b, text, look = "") => `<text x="${a.toFixed(1)}" y="${b.toFixed(1)}"${look}>${text}</text>`;

// Opens a group of which only what lies in a rectangle is shown; before the page is laid out there is none.
const clip = (id, left, top, right, bottom) => `<clipPath id="${id}"><rect x="${left}" y="${top}" ` +
  `width="${Math.max(0, right - left)}" height="${Math.max(0, bottom - top)}"/></clipPath><g clip-path="url(#${id})">`;

// About `num` round numbers between two.
function ticks(low, high, num) {
  const rough = (high - low) / num, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const decimals = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const first = Math.ceil(low / step - 1e-9), last = Math.floor(high / step + 1e-9);
  return Array.from({ length: Math.max(0, last - first + 1) }, (_, i) => {
    const value = (first + i) * step;
    return { value, text: signed(value.toFixed(decimals)).replace(/^−(0\.?0*)$/, "$1") };
  });
}

// The ticks of a parameter: powers of ten, with 2 and 5 between them, on a logarithmic slider.
function parameterTicks(parameter) {
  if (!parameter.isLog) return ticks(parameter.low, parameter.high, 7).map((one) => ({ ...one, place: one.value }));
  const all = [-2, -1, 0, 1, 2].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
  const placed = all.map((value) => ({ value, text: String(+value.toPrecision(1)), place: Math.log10(value) }));
  return placed.filter(({ place }) => place > lowest(parameter) - 1e-9 && place < highest(parameter) + 1e-9);
}

// The sizes of the plots on the page, read again only where one has changed: to read one after something was drawn
// makes the browser lay out the whole page.
const sizes = new Map();
const sizeOf = (svg) => sizes.get(svg);
const measure = (svg) => sizes.set(svg, { width: svg.clientWidth, height: svg.clientHeight });

function fill(svg, content, description) {
  svg.innerHTML = content;
  svg.setAttribute("aria-label", description);
}

// Points at which a density is drawn: evenly, and more of them where the guide has its mass.
function drawnAt(low, high, member) {
  const sd = Math.max(sdOf(member) || 0, 1e-3);
  const even = Array.from({ length: 241 }, (_, i) => low + (high - low) * i / 240);
  const near = Array.from({ length: 61 }, (_, i) => member.mean + sd * (i - 30) / 8);
  return [...even, ...near.filter((z) => z > low && z < high)].sort((a, b) => a - b);
}

function densityPlot(svg, strip, state) {
  const { width, height } = sizeOf(svg);
  const truth = posterior(state.x), member = state.member;
  const isPositive = member.logLeak === undefined;
  const high = truth.mean + 6 * sdOf(truth), low = -(isPositive ? 0.06 : 0.45) * high;
  const sx = scaled(low, high, 6, width - 6), bottom = height - 24;
  const curve = (one, from) => drawnAt(from, high, member).map((z) => [z, Math.exp(one.logDensity(z))]);
  const p = curve(truth, 1e-9), q = curve(member, isPositive ? 1e-9 : low);
  const peak = Math.exp(truth.logDensity(Math.max(state.x - 1, 0)));
  const best = state.best ? curve(state.family.at(state.best.values), 1e-9) : [];
  const highest = Math.max(...[...q, ...best].map((one) => one[1]).filter(Number.isFinite));
  const top = Math.min(Math.max(1.15 * peak, 1.08 * highest), 3 * peak);
  const sy = scaled(0, top, bottom, 8), drawn = (points) => points.map(([z, d]) => [sx(z), sy(Math.min(d, 2 * top))]);
  const zero = sx(0), area = (points) => pathOf([...points, [points.at(-1)[0], bottom], [points[0][0], bottom]]);
  const [shapeP, shapeQ] = [drawn(p), drawn(q)];
  const parts = [`<path class="axis" d="M6 ${bottom}H${width - 6}M${zero} ${bottom}V8"/>`];
  for (const { value, text } of ticks(low, high, width < 420 ? 5 : 8)) {
    if (value >= low + 0.02 * high) parts.push(label(sx(value), height - 7, text, MIDDLE));
  }
  parts.push(`<path class="area" d="${area(shapeP)}"/>`);
  if (!isPositive) parts.push(`<path class="leak" d="${area(shapeQ.filter(([a]) => a <= zero))}"/>`);
  parts.push(`<path class="p" d="M${zero} ${bottom}L${pathOf(shapeP).slice(1)}"/>`);
  if (state.best) parts.push(`<path class="best" d="${pathOf(drawn(best))}"/>`);
  parts.push(`<path class="q" d="${pathOf(shapeQ)}"/>`);
  if (state.x > low && state.x < high) {
    parts.push(`<path class="evidence" d="M${sx(state.x)} ${bottom - 5}V${bottom + 5}"/>`,
      label(sx(state.x) + 5, bottom - 5, "x", STRONG));
  }
  integrandPlot(strip, state, q, sx);
  const leak = isPositive ? "" : ` The guide has mass below 0, where the posterior has none.`;
  const told = (one) => `mean ${signed(one.mean.toFixed(2))}, standard deviation ${sdOf(one).toFixed(2)}`;
  fill(svg, parts.join(""),
    `Densities of z from 0 to ${high.toFixed(1)}. Posterior: ${told(truth)}. Guide: ${told(member)}.${leak}`);
}

// The integrand of the KL at the points of the guide's curve, on an axis that ends at a round number. It is nowhere
// negative.
function integrandPlot(svg, state, q, sx) {
  const { width, height } = sizeOf(svg), bottom = height - 6;
  const logP = posterior(state.x).logDensity, logQ = state.member.logDensity;
  const points = q.map(([z, dq]) => {
    if (z < 0) return [z, dq > 0 ? Infinity : 0];
    const dp = Math.exp(logP(z));
    return [z, dq > 0 ? dq * (logQ(z) - logP(z)) - dq + dp : dp];
  });
  const most = Math.max(...points.map((one) => one[1]).filter(Number.isFinite));
  const top = [0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10].find((one) => one >= most) ?? 20;
  const sy = scaled(0, top, bottom, 6);
  const line = points.filter(([z]) => z >= 0).map(([z, value]) => [sx(z), sy(Math.min(Math.max(value, 0), 2 * top))]);
  const parts = [`<path class="axis" d="M6 ${bottom}H${width - 6}M${sx(0)} ${bottom}V6"/>`,
    `<path class="gap" d="${pathOf([...line, [line.at(-1)[0], bottom], [sx(0), bottom]])}"/>`,
    label(width - 8, 16, `axis to ${top}`, END)];
  if (state.member.logLeak !== undefined) {
    parts.push(`<rect class="leak" x="6" y="6" width="${(sx(0) - 6).toFixed(1)}" height="${bottom - 6}"/>`,
      label((6 + sx(0)) / 2, bottom / 2 + 10, "∞", MIDDLE + STRONG));
  }
  const at = points.reduce((best, one) => (one[1] > best[1] && one[0] >= 0 ? one : best), [0, -1])[0];
  fill(svg, parts.join(""), `The integrand of KL(q || p) over z; it is largest at z = ${at.toFixed(2)}.`);
}

// The bar reaches from `span` nats below log p(x), a length that grows with the KL, to log p(x).
function barPlot(svg, state) {
  const { width } = sizeOf(svg), { numbers, best } = state;
  const kl = numbers.reverseKl, isFinite = Number.isFinite(kl);
  let span = 1;
  while (isFinite && kl > 0.85 * span) span *= span.toString().startsWith("3") ? 10 / 3 : 3;
  const [left, right, up, down] = [2, width - 52, 24, 56];
  const sx = scaled(numbers.evidence - span, numbers.evidence, left, right);
  const box = (name, from, to, look = "") => `<rect class="${name}" x="${from.toFixed(1)}" y="${up}" ` +
    `width="${Math.max(0, to - from).toFixed(1)}" height="${down - up}"${look}/>`;
  const parts = [];
  if (isFinite) {
    const [elbo, top] = [sx(numbers.elbo), sx(best.elbo)];
    parts.push(box("elbo", left, elbo), box("optimization", elbo, top), box("family", top, right));
    const teeth = [0, 1, 2, 3].map((i) => `L${left + 5} ${up + 4 + 8 * i}L${left} ${up + 8 + 8 * i}`).join("");
    parts.push(`<path class="torn" d="M${left - 2} ${up}L${left} ${up}${teeth}L${left - 2} ${down}Z"/>`);
    const inside = elbo - left > 80;
    parts.push(label(inside ? left + 12 : elbo + 6, up + 21, inside ? "ELBO" : "", STRONG));
    parts.push(label(Math.min((elbo + right) / 2, right - 34), up - 7, "KL(q ‖ p)", MIDDLE + STRONG));
  } else {
    parts.push(box("axis", left, right, ' stroke-dasharray="4 4"'));
    parts.push(label((left + right) / 2, up + 20, "nothing to fill: the ELBO is −∞", MIDDLE));
  }
  parts.push(`<path class="evidence" d="M${right} ${up - 8}V${down + 8}"/>`);
  parts.push(label(right + 5, up + 13, "log", STRONG), label(right + 5, up + 27, "p(x)", STRONG));
  for (const { value, text } of ticks(numbers.evidence - span, numbers.evidence, width < 420 ? 3 : 5)) {
    const at = sx(value);
    parts.push(`<path class="axis" d="M${at.toFixed(1)} ${down}v5"/>`);
    if (at > 14) parts.push(label(at, down + 18, text, MIDDLE));
  }
  fill(svg, parts.join(""), `log p(x) is ${nats(numbers.evidence)} nats: the ELBO ${nats(numbers.elbo)} and ` +
    `KL(q || p) ${divergence(kl)} on top of it.`);
}

const BOUND = { bottom: -12, top: 0 }; // what the plot over x shows, in nats

function boundPlot(svg, state) {
  const { width, height } = sizeOf(svg);
  const sx = scaled(X.low, X.high, 34, width - 8), sy = scaled(BOUND.bottom, BOUND.top, height - 34, 6);
  const xs = Array.from({ length: 101 }, (_, i) => X.low + (X.high - X.low) * i / 100);
  const curve = (f) => pathOf(xs.map((x) => [sx(x), sy(Math.max(f(x), BOUND.bottom - 30))]));
  const parts = [`<path class="axis" d="M34 6V${height - 34}H${width - 8}"/>`];
  for (const { value, text } of ticks(X.low, X.high, 6)) parts.push(label(sx(value), height - 19, text, MIDDLE));
  for (const { value, text } of ticks(BOUND.bottom, BOUND.top, 4)) parts.push(label(30, sy(value) + 4, text, END));
  parts.push(label((34 + width) / 2, height - 4, "x", MIDDLE));
  const { evidence, elbo } = state.numbers, at = sx(state.x).toFixed(1);
  const floor = Math.max(elbo, BOUND.bottom);
  parts.push(clip("explorer-clip", 34, 0, width - 8, height - 34), `<path class="evidence" d="${curve(logEvidence)}"/>`);
  if (Number.isFinite(elbo)) parts.push(`<path class="q" d="${curve((x) => elboOf(x, state.member))}"/>`);
  parts.push(`<path class="between" d="M${at} ${sy(evidence)}V${sy(floor)}"/></g>`);
  parts.push(`<circle cx="${at}" cy="${sy(evidence)}" r="5" fill="var(--x-ink)"/>`);
  if (elbo > BOUND.bottom) parts.push(`<circle class="here" cx="${at}" cy="${sy(elbo)}" r="6"/>`);
  parts.push(label(width - 8, sy(logEvidence(4)) - 12, "log p(x)", END + STRONG));
  if (Number.isFinite(elbo)) {
    const low = sx(-2.3), near = Math.min(Math.max(elboOf(-2.3, state.member), BOUND.bottom + 0.5), -1);
    parts.push(label(low, Math.min(sy(near) + 22, height - 44), "ELBO of this q", STRONG));
  } else parts.push(label((34 + width) / 2, height - 60, "the ELBO is −∞ at every x", MIDDLE));
  fill(svg, parts.join(""), "log p(x) over x from −4 to 6, and the ELBO of this guide, which lies below it. " +
    `At x = ${signed(state.x.toFixed(2))} they are ${nats(evidence)} and ${nats(elbo)}.`);
}

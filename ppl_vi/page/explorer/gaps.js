// The family gap of every family over x: which family fits where. The colours are those of lines in ppl_vi's figures.

const GAPS = { low: 1e-5, high: 10, spacing: 0.2 }; // what the plot shows, in nats, and how far apart its points are
const LINES = ["#0072B2", "#E69F00", "#333333", "#56B4E9", "#D55E00", "#009E73", "#CC79A7"];
const IN_GAPS = Object.keys(FAMILIES).filter((key) => !["truncated_normal", "normal"].includes(key));

const gapColor = (key) => (LINES[IN_GAPS.indexOf(key)] === "#333333" ? "var(--x-ink)" : LINES[IN_GAPS.indexOf(key)]);

// Left of x = 1 the best folded normal is the best half-normal, so its line is dashed.
const gapLook = (key) => `stroke="${gapColor(key)}"${key === "folded_normal" ? ' stroke-dasharray="7 5"' : ""}`;

// Computes one family at a time, while the visitor waits for nothing; calls `done` after each.
function computeGaps(done) {
  const waiting = IN_GAPS.filter((key) => !FAMILIES[key].gaps);
  if (!waiting.length) return;
  const num = Math.round((X.high - X.low) / GAPS.spacing), family = FAMILIES[waiting[0]];
  family.gaps = Array.from({ length: num + 1 }, (_, i) => {
    const x = X.low + i * GAPS.spacing;
    return [x, bestOf(x, family).kl];
  });
  done();
  setTimeout(() => computeGaps(done), 30);
}

function gapsLegend() {
  const sample = (key) => `<svg viewBox="0 0 26 12"><path d="M0 6H26" stroke-width="3" ${gapLook(key)}/></svg>`;
  return IN_GAPS.map((key) => `<span>${sample(key)}${FAMILIES[key].title}</span>`).join("");
}

function gapsPlot(svg, { x, family }) {
  const { width, height } = sizeOf(svg), bottom = height - 36, left = 50;
  const sx = scaled(X.low, X.high, left, width - 8);
  const log = scaled(Math.log10(GAPS.low), Math.log10(GAPS.high), bottom, 8);
  const sy = (gap) => Math.min(log(Math.log10(Math.max(gap, GAPS.low / 100))), bottom + 20);
  const parts = [`<path class="axis" d="M${left} 8V${bottom}H${width - 8}"/>`];
  for (let power = -5; power <= 1; power++) {
    const at = sy(10 ** power).toFixed(1);
    parts.push(`<path class="axis faint" d="M${left} ${at}H${width - 8}"/>`);
    parts.push(label(left - 6, +at + 4, powerOfTen(power), END));
  }
  for (const { value, text } of ticks(X.low, X.high, 10)) parts.push(label(sx(value), bottom + 16, text, MIDDLE));
  parts.push(label((left + width) / 2, height - 4, "x", MIDDLE + STRONG));
  parts.push(clip("explorer-gaps-clip", left, 8, width - 8, bottom));
  parts.push(`<path class="now" d="M${sx(x).toFixed(1)} 8V${bottom}"/>`);
  const last = (key) => (FAMILIES[key] === family ? 1 : 0); // the chosen family lies above the others
  for (const key of [...IN_GAPS].sort((a, b) => last(a) - last(b))) {
    const points = FAMILIES[key].gaps?.map(([at, gap]) => [sx(at), sy(gap)]);
    const width = last(key) ? 5 : 2;
    if (points) parts.push(`<path fill="none" ${gapLook(key)} stroke-width="${width}" d="${pathOf(points)}"/>`);
  }
  parts.push("</g>");
  fill(svg, parts.join(""), describeGaps(x));
}

const powerOfTen = (power) => (power < -2 ? `1e−${-power}` : String(10 ** power));

// The families at the x of the plot that is nearest, the best one first.
function describeGaps(x) {
  const i = Math.round((x - X.low) / GAPS.spacing), known = IN_GAPS.filter((key) => FAMILIES[key].gaps);
  const sorted = known.map((key) => [FAMILIES[key].title, FAMILIES[key].gaps[i][1]]).sort((a, b) => a[1] - b[1]);
  const at = signed((X.low + i * GAPS.spacing).toFixed(1));
  return `The family gap of each family over x from −4 to 6, in nats. At x = ${at}: truncated normal 0, ` +
    `${sorted.map(([title, gap]) => `${title} ${divergence(gap)}`).join(", ")}, normal infinite.`;
}

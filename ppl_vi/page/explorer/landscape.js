// The members of a family: a map of their KL over two parameters, or the curve of their ELBO over one.

const LEVELS = [0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100]; // nats, where a band of the map ends
const MAP = { left: 40, right: 10, top: 8, bottom: 38 };

const mapSize = (svg) => ({
  width: Math.max(1, Math.round(sizeOf(svg).width - MAP.left - MAP.right)),
  height: Math.max(1, Math.round(sizeOf(svg).height - MAP.top - MAP.bottom)),
});

// A place on the sliders as a place on the map, along the first and the second parameter.
function mapScales(svg, family) {
  const { width, height } = mapSize(svg), [first, second] = family.parameters;
  return [
    scaled(lowest(first), highest(first), MAP.left, MAP.left + width),
    second && scaled(lowest(second), highest(second), MAP.top + height, MAP.top),
  ];
}

function landscapePlot(svg, canvas, state) {
  const { family, best, values } = state, [first, second] = family.parameters;
  canvas.hidden = !second || !best;
  if (!best) return emptyPlot(svg);
  const { width, height } = mapSize(svg), [sa, sb] = mapScales(svg, family), bottom = MAP.top + height;
  const places = values.map((value, i) => placeOf(family.parameters[i], value));
  const bests = best.values.map((value, i) => placeOf(family.parameters[i], value));
  const parts = [`<path class="axis" d="M${MAP.left} ${MAP.top}V${bottom}H${MAP.left + width}"/>`];
  for (const { place, text } of parameterTicks(first)) parts.push(label(sa(place), bottom + 16, text, MIDDLE));
  parts.push(label(MAP.left + width / 2, bottom + 33, first.name, MIDDLE + STRONG));
  let upwards = sb; // the scale of the vertical axis: of the second parameter, or of the ELBO
  if (second) {
    drawMap(canvas, svg, state);
    for (const { place, text } of parameterTicks(second)) parts.push(label(MAP.left - 5, sb(place) + 4, text, END));
    const turned = ` transform="translate(11 ${MAP.top + height / 2}) rotate(-90)"`;
    parts.push(label(0, 0, second.name, MIDDLE + STRONG + turned));
  } else {
    upwards = curvePlot(parts, svg, state, sa);
  }
  const at = (mark, member) => [sa(mark[0]), upwards(second ? mark[1] : elboOf(state.x, member))].map((a) => a.toFixed(1));
  const optima = [bests];
  if (family === FAMILIES.folded_normal) optima.push([-bests[0], bests[1]]);
  for (const one of optima) {
    const [a, b] = at(one, family.at(best.values));
    parts.push(`<path class="there" d="M${a} ${b}m0 -9l9 9l-9 9l-9 -9z"/>`);
  }
  const [a, b] = at(places, state.member);
  parts.push(`<circle class="here" cx="${a}" cy="${b}" r="7"/>`);
  const named = (these) => family.parameters.map((one, i) => `${one.name} ${shown(one, these[i])}`).join(", ");
  const axes = family.parameters.map((one) => one.name).join(" and ");
  fill(svg, parts.join(""), `${second ? "KL(q || p)" : "ELBO"} over ${axes}. The best member is at ` +
    `${named(best.values)}, with KL ${divergence(best.kl)}. The guide is at ${named(values)}.`);
}

function emptyPlot(svg) {
  const text = "KL(q ‖ p) is ∞ for every loc and scale: there is nothing to descend.";
  const [one, two] = text.split(": "), { width, height } = sizeOf(svg), a = width / 2, b = height / 2;
  fill(svg, label(a, b - 8, one, MIDDLE) + label(a, b + 12, two, MIDDLE), text);
}

// The ELBO over one parameter, under log p(x); returns the scale of the vertical axis.
function curvePlot(parts, svg, state, sa) {
  const { width, height } = mapSize(svg), { evidence } = state.numbers, { places, members } = tableOf(state.family);
  const low = evidence - Math.max(2, 3 * state.best.kl), sy0 = scaled(low, evidence, MAP.top + height, MAP.top + 14);
  const sy = (elbo) => Math.min(sy0(elbo), MAP.top + height + 4);
  for (const { value, text } of ticks(low, evidence, 4)) parts.push(label(MAP.left - 5, sy(value) + 4, text, END));
  parts.push(`<path class="evidence" d="M${MAP.left} ${sy(evidence)}h${width}"/>`);
  parts.push(label(MAP.left + width - 4, sy(evidence) - 4, "log p(x)", END + STRONG));
  const points = places.map((place, i) => [sa(place[0]), elboOf(state.x, members[i])]).filter((one) => one[1] > low);
  if (points.length > 1) parts.push(`<path class="q" d="${pathOf(points.map(([a, elbo]) => [a, sy(elbo)]))}"/>`);
  return sy;
}

// The colours of the bands, from that of the posterior to that of the panel.
function bandColors(element) {
  const style = getComputedStyle(element);
  const rgb = (name) => {
    const text = style.getPropertyValue(name).trim().slice(1);
    const full = text.length === 3 ? [...text].map((c) => c + c).join("") : text;
    return [0, 2, 4].map((i) => parseInt(full.slice(i, i + 2), 16));
  };
  const [near, far] = [rgb("--x-posterior"), rgb("--x-panel")];
  return [...LEVELS, Infinity].map((_, i) => {
    const share = 0.9 * (1 - i / LEVELS.length);
    return near.map((value, j) => Math.round(far[j] + share * (value - far[j])));
  });
}

function bandOf(kl) {
  let band = 0;
  while (band < LEVELS.length && !(kl < LEVELS[band])) band++;
  return band;
}

// Draws the bands, between the members of the table by linear interpolation, unless the map is drawn already.
function drawMap(canvas, svg, { x, family, colors }) {
  const { width, height } = mapSize(svg), wanted = [x, family.title, width, height, colors].join();
  if (canvas.dataset.drawn === wanted) return;
  canvas.dataset.drawn = wanted;
  if (canvas.width !== width || canvas.height !== height) {
    Object.assign(canvas, { width, height });
    canvas.style.cssText = `left:${MAP.left}px;top:${MAP.top}px;width:${width}px;height:${height}px`;
  }
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const codes = colors.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
  const [na, nb] = GRID[2], kl = landscapeOf(x, family), row = new Float64Array(na);
  let [here, above] = [new Int8Array(width), new Int8Array(width)];
  for (let j = 0; j < height; j++) {
    const b = (height - 1 - j) / (height - 1) * (nb - 1), below = Math.min(Math.floor(b), nb - 2), up = b - below;
    for (let i = 0; i < na; i++) row[i] = kl[below * na + i] * (1 - up) + kl[(below + 1) * na + i] * up;
    bandsOf(row, here);
    for (let i = 0; i < width; i++) {
      const edge = (i && here[i] !== here[i - 1]) || (j && here[i] !== above[i]);
      pixels[j * width + i] = codes[edge ? Math.max(0, here[i] - 2) : here[i]];
    }
    [here, above] = [above, here];
  }
  context.putImageData(image, 0, 0);
}

// The bands of a row of pixels; between two members in the same band there is nothing to compute.
function bandsOf(row, bands) {
  const scale = (bands.length - 1) / (row.length - 1);
  let from = 0, left = bandOf(row[0]);
  for (let i = 0; i + 1 < row.length; i++) {
    const to = Math.floor((i + 1) * scale) + 1, right = bandOf(row[i + 1]);
    if (left === right) bands.fill(left, from, to);
    else for (let k = from; k < to; k++) bands[k] = bandOf(row[i] + (k / scale - i) * (row[i + 1] - row[i]));
    [from, left] = [to, right];
  }
}

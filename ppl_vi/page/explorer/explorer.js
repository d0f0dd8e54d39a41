// The explorer itself: what the visitor has chosen, and what follows from it.

const root = document.querySelector(".explorer");
const part = (name) => root.querySelector(`[data-part="${name}"]`);
const plot = (name) => root.querySelector(`[data-plot="${name}"]`);
const CALM = matchMedia("(prefers-reduced-motion: reduce)");
const GLIDE = 350; // milliseconds to the optimum
const QUIET = 700; // milliseconds without a change before a screen reader is told the numbers

const state = { x: X.start, key: "lognormal", values: {}, colors: [], turn: 0 };
for (const [key, family] of Object.entries(FAMILIES)) state.values[key] = family.parameters.map((one) => one.start);

// Every change by the visitor goes through here. A glide to the optimum that is under way ends: its turn is over.
function changed(update) {
  state.turn++;
  update();
  draw();
}

// A slider in its place. The exact value is kept in `state`; the slider shows the step that is nearest to it.
function slider(home, id, parameter, moved) {
  home.innerHTML = `<label for="${id}">${parameter.name}</label><output for="${id}" aria-live="off"></output>
<input type="range" id="${id}" min="${lowest(parameter)}" max="${highest(parameter)}" step="${parameter.step}"
aria-describedby="${id}-note"><span class="explorer-track" aria-hidden="true"></span>
<span class="explorer-note" id="${id}-note"></span>`;
  const input = home.querySelector("input");
  input.addEventListener("input", () => changed(() => moved(valueAt(parameter, roundedPlace(parameter, +input.value)))));
}

// A place in whole steps, without the rounding errors of counting up from the slider's end.
const roundedPlace = (parameter, place) => +(Math.round(place / parameter.step) * parameter.step).toFixed(6);

function showSlider(home, parameter, value, best) {
  const input = home.querySelector("input"), text = shown(parameter, value), place = placeOf(parameter, value);
  if (roundedPlace(parameter, +input.value) !== roundedPlace(parameter, place)) input.value = place;
  home.querySelector("output").textContent = text;
  input.setAttribute("aria-valuetext", text);
  const track = home.querySelector(".explorer-track"), note = home.querySelector(".explorer-note");
  const along = scaled(lowest(parameter), highest(parameter), 0, 1);
  const share = best === undefined ? NaN : along(placeOf(parameter, best));
  track.innerHTML = share >= 0 && share <= 1 ? `<i style="--at:${share.toFixed(4)}"></i>` : "";
  note.textContent = best === undefined ? "" : `optimum at ${shown(parameter, best)}`;
}

function chooseFamily(key) {
  state.key = key;
  root.querySelector("select").value = key;
  part("parameters").innerHTML = '<div class="explorer-slider" data-kind="guide"></div>'.repeat(FAMILIES[key].parameters.length);
  [...part("parameters").children].forEach((home, i) => {
    slider(home, `explorer-parameter-${i}`, FAMILIES[key].parameters[i], (value) => {
      part("stay").checked = false;
      state.values[key] = state.values[key].map((old, j) => (i === j ? value : old));
    });
  });
  root.querySelector("#explorer-summary").textContent = FAMILIES[key].summary;
}

// All that follows from x, the family and its parameters. The optimum is searched anew only where x or the family
// moved.
function follow() {
  const family = FAMILIES[state.key], wanted = `${state.x} ${state.key}`;
  if (state.bestFor !== wanted) Object.assign(state, { best: bestOf(state.x, family), bestFor: wanted });
  if (part("stay").checked && state.best) state.values[state.key] = state.best.values;
  const values = state.values[state.key], numbers = numbersOf(state.x, family, values), { best } = state;
  Object.assign(numbers, { bestElbo: best?.elbo ?? -Infinity, familyGap: best?.kl ?? Infinity });
  if (best) numbers.optimizationGap = best.elbo - numbers.elbo;
  return { x: state.x, family, values, member: family.at(values), best, numbers, colors: state.colors };
}

const DIVERGENCES = new Set(["reverseKl", "forwardKl", "familyGap", "optimizationGap"]);

function showNumbers({ numbers }) {
  for (const cell of root.querySelectorAll("[data-number]")) {
    const name = cell.dataset.number, value = numbers[name];
    cell.textContent = value === undefined ? "–" : DIVERGENCES.has(name) ? divergence(value) : nats(value);
  }
}

// Why the numbers of a leaking guide are infinite, and what the truncated normal is called in the library.
function showReasons({ numbers, family, values, best }) {
  const reason = part("reason"), { logLeak } = numbers;
  reason.hidden = logLeak === undefined;
  if (logLeak !== undefined) {
    const log10 = logLeak / Math.LN10;
    const mass = log10 > -4 ? Math.exp(logLeak).toPrecision(3) : `10^−${(-log10).toFixed(0)}`;
    reason.textContent = `KL(q ‖ p) is ∞ and the ELBO −∞, because q has mass ${mass} below 0, where p(z) = 0 ` +
      `and so log p(x, z) = −∞. However little that mass is, it decides. A guide needs the support of the posterior.`;
  }
  part("move").disabled = part("stay").disabled = !best;
  part("best-legend").hidden = !best;
  const isTruncated = family === FAMILIES.truncated_normal;
  part("library").textContent = isTruncated ? `In ppl_vi this member has ${modeAndCurvature(values)}.` : "";
  root.querySelector(".explorer-bands").hidden = !best || family.parameters.length === 1;
  part("landscape-title").innerHTML = family.parameters.length === 1 && best
    ? "ELBO of all members of the family, under log <i>p</i>(<i>x</i>)"
    : "KL(<i>q</i> ‖ <i>p</i>) of all members of the family";
}

// loc = mode (1 - 1 / curvature) and scale = mode / sqrt(curvature), solved for mode and curvature.
function modeAndCurvature([m, s]) {
  const ratio = m / s, root4 = Math.hypot(ratio, 2), root = ratio > 0 ? (ratio + root4) / 2 : 2 / (root4 - ratio);
  return `mode ${(s * root).toPrecision(4)} and curvature ${(root * root).toPrecision(4)}`;
}

let telling;
function tell({ x, family, values, numbers }) {
  clearTimeout(telling);
  telling = setTimeout(() => {
    const named = family.parameters.map((one, i) => `${one.name} ${shown(one, values[i])}`).join(", ");
    part("status").textContent = `x ${signed(x.toFixed(2))}, ${family.title}, ${named}: ` +
      `ELBO ${nats(numbers.elbo)}, KL(q || p) ${divergence(numbers.reverseKl)}, log p(x) ${nats(numbers.evidence)} nats.`;
  }, QUIET);
}

function draw() {
  const now = follow();
  showSlider(root.querySelector('[data-slider="x"]'), X, now.x);
  [...part("parameters").children].forEach((home, i) =>
    showSlider(home, now.family.parameters[i], now.values[i], now.best?.values[i]));
  showNumbers(now);
  showReasons(now);
  densityPlot(plot("density"), plot("integrand"), now);
  barPlot(plot("bar"), now);
  landscapePlot(plot("landscape"), part("map"), now);
  boundPlot(plot("bound"), now);
  gapsPlot(plot("gaps"), now);
  tell(now);
}

// Takes the colours of the theme, and draws anew.
function paint() {
  state.colors = bandColors(root);
  const names = [...LEVELS.map((level) => `&lt; ${level}`), `≥ ${LEVELS.at(-1)}`];
  root.querySelector(".explorer-bands").innerHTML = "<span>nats:</span>" + names.map((name, i) =>
    `<span><i style="background:rgb(${state.colors[i]})"></i>${name}</span>`).join("");
  draw();
}

// Goes to the optimum along the sliders, at once where the visitor wants no motion.
function moveToBest() {
  const { best, family, values } = follow(), key = state.key, turn = ++state.turn;
  const from = values.map((value, i) => placeOf(family.parameters[i], value));
  const to = best.values.map((value, i) => placeOf(family.parameters[i], value));
  const begin = performance.now(), length = CALM.matches ? 0 : GLIDE;
  const step = (now) => {
    if (state.turn !== turn) return;
    const share = length ? Math.min(1, Math.max(0, (now - begin) / length)) : 1;
    const eased = share * share * (3 - 2 * share);
    state.values[key] = share === 1 ? best.values
      : from.map((place, i) => valueAt(family.parameters[i], place + eased * (to[i] - place)));
    draw();
    if (share < 1) requestAnimationFrame(step);
  };
  step(begin);
}

function tryThis({ x, family, values }) {
  changed(() => {
    part("stay").checked = values === "best";
    state.x = +x;
    chooseFamily(family);
    if (values !== "best") state.values[family] = values.split(" ").map(Number);
  });
  root.querySelector(".explorer-grid").scrollIntoView({ behavior: CALM.matches ? "auto" : "smooth" });
}

// A press, and a mouse that is dragged, move x in one plot and the guide's parameters in the other.
function dragged(svg, moved) {
  const at = (event) => {
    const { left, top } = svg.getBoundingClientRect();
    changed(() => moved(event.clientX - left, event.clientY - top));
  };
  const isMouse = (event) => event.pointerType === "mouse";
  svg.addEventListener("click", at);
  svg.addEventListener("pointerdown", (event) => isMouse(event) && svg.setPointerCapture(event.pointerId));
  svg.addEventListener("pointermove", (event) => isMouse(event) && event.buttons === 1 && at(event));
}

function begin() {
  const select = root.querySelector("select");
  const options = Object.entries(FAMILIES).map(([key, { title }]) => `<option value="${key}">${title}</option>`);
  select.innerHTML = options.join("");
  select.addEventListener("change", () => changed(() => chooseFamily(select.value)));
  root.querySelector("form").addEventListener("submit", (event) => event.preventDefault());
  slider(root.querySelector('[data-slider="x"]'), "explorer-x", X, (value) => (state.x = value));
  part("move").addEventListener("click", moveToBest);
  part("stay").addEventListener("change", () => (part("stay").checked ? moveToBest() : draw()));
  for (const button of root.querySelectorAll(".explorer-tries button")) {
    button.addEventListener("click", () => tryThis(button.dataset));
  }
  for (const [name, left] of [["bound", 34], ["gaps", 50]]) {
    dragged(plot(name), (a) => {
      const place = scaled(left, sizeOf(plot(name)).width - 8, X.low, X.high)(a);
      state.x = roundedPlace(X, Math.min(X.high, Math.max(X.low, place)));
    });
  }
  dragged(plot("landscape"), (a, b) => {
    const { parameters, at } = FAMILIES[state.key], { width, height } = mapSize(plot("landscape"));
    if (!follow().best) return;
    const shares = [(a - MAP.left) / width, 1 - (b - MAP.top) / height].slice(0, parameters.length);
    part("stay").checked = false;
    state.values[state.key] = parameters.map((one, i) => valueAt(one, roundedPlace(one,
      lowest(one) + Math.min(1, Math.max(0, shares[i])) * (highest(one) - lowest(one)))));
  });
  root.querySelectorAll("svg[data-plot]").forEach(measure);
  part("gaps-legend").innerHTML = gapsLegend();
  chooseFamily(state.key);
  paint();
  setTimeout(() => computeGaps(draw), 100);
  const watch = new ResizeObserver((changed) => (changed.forEach((one) => measure(one.target)), draw()));
  root.querySelectorAll("svg[data-plot]").forEach((svg) => watch.observe(svg));
  for (const query of ["(prefers-color-scheme: dark)", "print"]) matchMedia(query).addEventListener("change", paint);
  const theme = { attributes: true, attributeFilter: ["data-theme", "class"] };
  new MutationObserver(paint).observe(document.documentElement, theme);
}

begin();

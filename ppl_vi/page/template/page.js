"use strict";
(() => {
  const root = document.documentElement;
  const plots = JSON.parse(document.getElementById("plots").textContent);
  const drawn = new Set();
  const PAINTED = new Set(["color", "fillcolor", "fgcolor", "bgcolor", "bordercolor"]);
  const FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif';

  // ---- tables ------------------------------------------------------------------------------------------------------
  const collator = new Intl.Collator(undefined, { numeric: true });

  function keyOf(row, column) {
    const text = row.cells[column].dataset.key;
    if (text === undefined) return null;
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
  }

  function compared(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : collator.compare(String(a), String(b));
  }

  function sort(table, header) {
    const column = [...header.parentNode.children].indexOf(header);
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.children) other.setAttribute("aria-sort", "none");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [keyOf(row, column), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null); // what is missing stands last either way
      return descending ? compared(b, a) : compared(a, b);
    });
    body.append(...rows.map(([, row]) => row));
  }

  function filter(table, words, count) {
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    const rows = [...table.tBodies[0].rows];
    let shown = 0;
    for (const row of rows) {
      const texts = [...row.cells].map((cell) => cell.textContent.toLowerCase());
      row.hidden = !wanted.every((word) => texts.some((text) => text.includes(word)));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = wanted.length ? `${shown} of ${rows.length} rows` : "";
  }

  for (const button of document.querySelectorAll("table.tool thead button")) {
    button.addEventListener("click", () => sort(button.closest("table"), button.parentNode));
  }
  for (const input of document.querySelectorAll('input[type="search"][data-table]')) {
    const id = input.dataset.table;
    const count = document.querySelector(`.count[data-table="${id}"]`);
    input.addEventListener("input", () => filter(document.getElementById(id), input.value, count));
  }
  for (const button of document.querySelectorAll(".more-columns")) {
    button.addEventListener("click", () => {
      const all = document.getElementById(button.dataset.table).classList.toggle("all");
      button.setAttribute("aria-pressed", String(all));
    });
  }

  // ---- figures -----------------------------------------------------------------------------------------------------
  function painted(value, colors) {
    if (Array.isArray(value)) return value.map((one) => painted(one, colors));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, one]) => {
      const named = PAINTED.has(name) && typeof one === "string" && one.startsWith("@");
      return [name, named ? colors.getPropertyValue(`--${one.slice(1)}`).trim() : painted(one, colors)];
    }));
  }

  function axisLook(axis, colors) {
    const look = painted(axis, colors);
    const ink = (name) => colors.getPropertyValue(name).trim();
    return {
      gridcolor: ink("--grid"), linecolor: ink("--rule"), zeroline: false, automargin: true, tickfont: { size: 12 },
      ...look, title: { font: { size: 12 }, standoff: 8, ...look.title }, fixedrange: true,
    };
  }

  function looked(plot) {
    const colors = getComputedStyle(root);
    const ink = (name) => colors.getPropertyValue(name).trim();
    const layout = painted(plot.layout, colors);
    for (const name of Object.keys(layout)) {
      if (/^[xy]axis\d*$/.test(name)) layout[name] = axisLook(plot.layout[name], colors);
    }
    return {
      data: painted(plot.data, colors),
      layout: {
        showlegend: false, dragmode: false, hovermode: "closest", paper_bgcolor: "rgba(0,0,0,0)",
        plot_bgcolor: "rgba(0,0,0,0)", font: { family: FONT, size: 13, color: ink("--ink") },
        hoverlabel: { bgcolor: ink("--raised"), bordercolor: ink("--soft"), font: { color: ink("--ink") } },
        ...layout, margin: { l: 8, r: 12, t: 12, b: 8, ...layout.margin },
      },
    };
  }

  function hiddenLines(place) {
    if (!place.closest("figure.lines")) return new Set();
    const chips = place.closest("section").querySelectorAll('.chips button[aria-pressed="false"]');
    return new Set([...chips].map((chip) => Number(chip.dataset.line)));
  }

  function draw(place) {
    const { data, layout } = looked(plots[place.id]);
    const hidden = hiddenLines(place);
    for (const trace of data) if (hidden.has(trace.meta)) trace.visible = false;
    drawn.add(place);
    return Plotly.react(place, data, layout, { displayModeBar: false, responsive: true });
  }

  async function loaded() {
    const coded = document.getElementById("plotly").textContent.trim();
    const text = atob(coded);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  }

  async function watch() {
    const places = [...document.querySelectorAll(".plot")];
    if (!places.length) return;
    try {
      await loaded();
    } catch {
      for (const place of places) {
        const said = document.createElement("p");
        said.className = "lost";
        said.textContent = "This browser can't draw the figure. Its numbers are in the table below.";
        place.style.height = "auto";
        place.append(said);
      }
      return;
    }
    const observer = new IntersectionObserver((entries) => {
      for (const entry of entries) {
        if (entry.isIntersecting && !drawn.has(entry.target)) draw(entry.target);
      }
    }, { rootMargin: "600px" });
    for (const place of places) observer.observe(place);
    root.dataset.figures = "ready";
  }

  for (const chip of document.querySelectorAll(".chips button")) {
    chip.addEventListener("click", () => {
      chip.setAttribute("aria-pressed", String(chip.getAttribute("aria-pressed") !== "true"));
      for (const place of chip.closest("section").querySelectorAll("figure.lines .plot")) {
        if (drawn.has(place)) draw(place);
      }
    });
  }

  // ---- theme -------------------------------------------------------------------------------------------------------
  const toggle = document.getElementById("theme");

  function themed(theme) {
    root.dataset.theme = theme;
    toggle.setAttribute("aria-pressed", String(theme === "dark"));
    drawn.forEach(draw);
  }

  toggle.setAttribute("aria-pressed", String(root.dataset.theme === "dark"));
  toggle.addEventListener("click", () => {
    const theme = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("ppl-vi-theme", theme); } catch { /* a page from disk may have no storage */ }
    themed(theme);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
    themed(event.matches ? "dark" : "light");
  });
  let before = null;
  addEventListener("beforeprint", () => {
    before = root.dataset.theme;
    document.querySelectorAll("details.fold, details.folded").forEach((one) => { one.open = true; });
    if (window.Plotly) document.querySelectorAll(".plot").forEach((place) => drawn.has(place) || draw(place));
    themed("light");
  });
  addEventListener("afterprint", () => themed(before));

  // ---- contents ----------------------------------------------------------------------------------------------------
  const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      links.forEach((link) => link.removeAttribute("aria-current"));
      links.get(entry.target.id)?.setAttribute("aria-current", "true");
    }
  }, { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main > [id]").forEach((section) => seen.observe(section));

  watch();
})();

// Charts in SVG, drawn for the width they have.

/** About `n` round numbers from `low` to `high`. */
function ticks(low, high, n) {
  const span = high - low || 1;
  const power = 10 ** Math.floor(Math.log10(span / n));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => span / s <= n) || span;
  const values = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) values.push(Number((k * step).toPrecision(12)));
  return values;
}

/** A writer of tick values with no more digits than tell them exactly. */
function tickWriter(measure, values) {
  const scale = SHARES.has(measure) ? 100 : 1;
  const exact = (digits) => values.every((v) => Math.abs(Number((v * scale).toFixed(digits)) - v * scale) < 1e-9 * Math.max(1, Math.abs(v * scale)));
  const digits = [0, 1, 2, 3, 4, 5].find(exact) ?? 6;
  return SHARES.has(measure) ? (v) => percent(v, digits) : (v) => v.toFixed(digits);
}

const SHARES = new Set(["accuracy", "balanced_accuracy", "balanced accuracy", "f1", "macro f1", "macro_f1", "precision", "recall", "exact match", "exact_match", "error"]);
/** A writer of values of a measure; `spread` = the range that must be told apart. */
function writer(measure, spread) {
  if (SHARES.has(measure)) return (v) => percent(v, spread < 0.004 ? 2 : spread < 0.04 ? 1 : 0);
  const digits = Math.max(0, Math.min(6, 1 - Math.floor(Math.log10(spread || 1))));
  return (v) => v.toFixed(digits);
}

const extent = (values) => {
  const known = values.filter((v) => v !== null && Number.isFinite(v));
  return known.length ? [Math.min(...known), Math.max(...known)] : [0, 1];
};

/** Lines over epochs, named at their ends; pointer or arrow keys read the values off. */
function lineChart(container, measure, epochs, lines) {
  const colours = ["var(--mark)", "var(--accent)", "var(--k1)", "var(--k3)"];
  const [low, high] = extent(lines.flatMap((l) => l.values));
  const pad = (high - low || Math.abs(high) || 1) * 0.06;
  const bottom = low >= 0 && low < 0.35 * high ? 0 : low - pad;
  const top = SHARES.has(measure) ? Math.min(1, high + pad) : high + pad;
  const write = writer(measure, top - bottom);
  const place = h("div", {});
  container.append(h("h3", {}, measure), place, numbers(["epoch", ...lines.map((l) => l.name)], epochs.map((e, k) => [e, ...lines.map((l) => (l.values[k] === null ? "" : writer(measure, (top - bottom) / 20)(l.values[k])))])));
  let at = epochs.length - 1;
  drawn(place, (width) => {
    const height = 220, left = 48, right = 64, foot = 34, head = 8;
    const first = epochs[0], last = epochs[epochs.length - 1];
    const x = (e) => left + ((e - first) / (last - first || 1)) * (width - left - right);
    const y = (v) => head + (1 - (v - bottom) / (top - bottom || 1)) * (height - head - foot);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, tabindex: 0, role: "img", "aria-label": `${measure} per epoch: ${lines.map((l) => `${l.name} ends at ${write(l.values.findLast((v) => v !== null))}`).join(", ")}` });
    const marks = ticks(bottom, top, 5), mark = tickWriter(measure, marks);
    for (const v of marks) {
      root.append(svg("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }), svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, mark(v)));
    }
    for (const e of ticks(first, last, Math.max(2, Math.floor(width / 70))).filter(Number.isInteger)) root.append(svg("text", { x: x(e), y: height - foot + 18, "text-anchor": "middle" }, whole(e)));
    root.append(svg("text", { x: (left + width - right) / 2, y: height - 1, "text-anchor": "middle" }, "epoch"));
    const ends = lines.map((l, k) => {
      const known = epochs.map((e, j) => [x(e), l.values[j]]).filter(([, v]) => v !== null).map(([px, v]) => [px, y(v)]);
      root.append(svg("polyline", { points: known.map((p) => p.map((c) => c.toFixed(1)).join()).join(" "), fill: "none", stroke: colours[k % 4], "stroke-width": 2, "stroke-linejoin": "round" }));
      const [ex, ey] = known[known.length - 1] || [left, head];
      root.append(svg("circle", { cx: ex, cy: ey, r: 3, fill: colours[k % 4] }));
      return { name: l.name, ey, ex, fill: colours[k % 4] };
    }).sort((a, b) => a.ey - b.ey);
    ends.forEach((end, k) => {
      end.ty = Math.max(end.ey, k ? ends[k - 1].ty + 15 : 0);
      root.append(svg("text", { x: end.ex + 8, y: end.ty + 4, style: `fill:${end.fill};font-weight:560` }, end.name));
    });
    const rule = svg("line", { class: "axis", y1: head, y2: height - foot, visibility: "hidden" });
    root.append(rule);
    const read = (k, cx, cy) => {
      at = k;
      rule.setAttribute("x1", x(epochs[k])); rule.setAttribute("x2", x(epochs[k])); rule.setAttribute("visibility", "visible");
      const fine = writer(measure, (top - bottom) / 20);
      showTip(cx, cy, h("div", { class: "soft" }, `epoch ${epochs[k]}`), lines.filter((l) => l.values[k] !== null).map((l) => h("div", {}, `${l.name} `, h("b", {}, fine(l.values[k])))));
    };
    const leave = () => { hideTip(); rule.setAttribute("visibility", "hidden"); };
    root.addEventListener("pointermove", (event) => {
      const px = event.clientX - root.getBoundingClientRect().left;
      read(epochs.reduce((best, e, k) => (Math.abs(x(e) - px) < Math.abs(x(epochs[best]) - px) ? k : best), 0), event.clientX, event.clientY);
    });
    root.addEventListener("pointerleave", leave);
    root.addEventListener("blur", leave);
    root.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const bounds = root.getBoundingClientRect();
      const k = Math.max(0, Math.min(epochs.length - 1, at + step));
      read(k, bounds.left + x(epochs[k]), bounds.top + 40);
    });
    place.replaceChildren(root);
  });
}

function numbers(head, rows) {
  return h("details", { class: "numbers" }, h("summary", {}, "The numbers"),
    h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, head.map((name) => h("th", { scope: "col" }, String(name))))), h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value) => h("td", {}, String(value)))))))));
}

/** Accuracy against confidence, with how many predictions stand behind each bar. */
function reliabilityChart(container, bins) {
  drawn(container, (width) => {
    const side = Math.min(width, 380), left = 44, foot = 40, head = 8, counts = 46;
    const inner = side - left - 8;
    const height = head + inner + counts + foot;
    const x = (v) => left + v * inner, y = (v) => head + (1 - v) * inner;
    const total = bins.count.reduce((a, b) => a + b, 0), most = Math.max(...bins.count);
    const root = svg("svg", { viewBox: `0 0 ${side} ${height}`, height, style: `width:${side}px`, role: "img", "aria-label": `Reliability: ${bins.low.map((l, k) => `confidence ${percent(l)} to ${percent(bins.high[k])}, ${percent(bins.accuracy[k])} right`).join("; ")}` });
    for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      root.append(svg("line", { class: "grid", x1: left, x2: left + inner, y1: y(v), y2: y(v) }), svg("text", { x: left - 8, y: y(v) + 4, "text-anchor": "end" }, percent(v)), svg("text", { x: x(v), y: height - foot + 18, "text-anchor": "middle" }, percent(v)));
    }
    const base = head + inner + counts;
    bins.low.forEach((low, k) => {
      const x0 = x(low) + 1, w = (bins.high[k] - low) * inner - 2;
      const bar = svg("rect", { x: x0, width: w, y: y(bins.accuracy[k]), height: Math.max(1, bins.accuracy[k] * inner), fill: "var(--bar)", rx: 2 });
      const high = Math.max(1, (bins.count[k] / most) * (counts - 12));
      const many = svg("rect", { x: x0, width: w, y: base - high, height: high, fill: "var(--mark)", opacity: 0.6, rx: 1 });
      const mean = svg("line", { x1: x0, x2: x0 + w, y1: y(bins.confidence[k]), y2: y(bins.confidence[k]), stroke: "var(--accent)", "stroke-width": 2 });
      const area = svg("rect", { x: x0, width: w, y: head, height: base - head, fill: "transparent" });
      area.addEventListener("pointermove", (event) => showTip(event.clientX, event.clientY, h("div", { class: "soft" }, `confidence ${percent(low)} to ${percent(bins.high[k])}`), h("div", {}, "right ", h("b", {}, percent(bins.accuracy[k], 1))), h("div", {}, "sure ", h("b", {}, percent(bins.confidence[k], 1))), h("div", {}, `${plural(bins.count[k], "prediction")} of ${whole(total)}`)));
      area.addEventListener("pointerleave", hideTip);
      root.append(bar, many, mean, area);
    });
    root.append(svg("line", { x1: x(0), y1: y(0), x2: x(1), y2: y(1), stroke: "var(--mark)", "stroke-dasharray": "3 4" }));
    root.append(svg("line", { class: "axis", x1: left, x2: left + inner, y1: base, y2: base }), svg("text", { x: left + inner / 2, y: height - 4, "text-anchor": "middle" }, "confidence"));
    container.replaceChildren(root, h("div", { class: "keys" }, key("bar", "right"), key("accent", "sure"), key("mark", "how many predictions")), numbers(["confidence", "predictions", "right", "sure"], bins.low.map((l, k) => [`${percent(l)} to ${percent(bins.high[k])}`, whole(bins.count[k]), percent(bins.accuracy[k], 1), percent(bins.confidence[k], 1)])));
  });
}

const key = (name, words) => h("span", {}, h("span", { class: "swatch", style: { background: `var(--${name})` } }), words);

/** One row of dots per condition, a line at the mean, joined by seed where pointed at. */
function trialChart(container, trial) {
  const rows = [["As it was", trial.before, "var(--mark)"], ...Object.entries(trial.controls).map(([name, values]) => [`${name[0].toUpperCase()}${name.slice(1)} edits`, values, "var(--mark)"]), ["Suggested edits", trial.after, "var(--accent)"]];
  const [low, high] = extent(rows.flatMap(([, values]) => values));
  const pad = (high - low || Math.abs(high) * 0.01 || 1) * 0.12;
  const fine = writer(trial.metric, SHARES.has(trial.metric) ? 0.001 : (high - low) / 20);
  drawn(container, (width) => {
    const narrow = width < 480, left = narrow ? 8 : 128, right = 74, step = narrow ? 60 : 52, foot = 40;
    const height = rows.length * step + foot;
    const x = (v) => left + ((v - low + pad) / (high - low + 2 * pad)) * (width - left - right);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": rows.map(([name, values]) => `${name}: mean ${fine(values.reduce((a, b) => a + b, 0) / values.length)}`).join("; ") });
    const marks = ticks(low - pad, high + pad, Math.max(2, Math.floor((width - left - right) / 90))), mark = tickWriter(trial.metric, marks);
    for (const v of marks) root.append(svg("line", { class: "grid", x1: x(v), x2: x(v), y1: 4, y2: height - foot }), svg("text", { x: x(v), y: height - foot + 18, "text-anchor": "middle" }, mark(v)));
    root.append(svg("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, `test ${trial.metric.replaceAll("_", " ")}`));
    rows.forEach(([name, values, fill], r) => {
      const y = r * step + (narrow ? 40 : 28), mean = values.reduce((a, b) => a + b, 0) / values.length;
      root.append(svg("text", { class: "strong", x: narrow ? left : left - 18, y: narrow ? y - 20 : y + 4, "text-anchor": narrow ? "start" : "end" }, name));
      root.append(svg("line", { x1: x(mean), x2: x(mean), y1: y - 13, y2: y + 13, stroke: fill, "stroke-width": 3, "stroke-linecap": "round" }));
      values.forEach((value, k) => {
        const dot = svg("circle", { cx: x(value), cy: y, r: 5, fill, opacity: 0.62 });
        dot.addEventListener("pointermove", (event) => showTip(event.clientX, event.clientY, h("div", { class: "soft" }, `${name}, seed ${trial.seeds[k]}`), h("b", {}, fine(value))));
        dot.addEventListener("pointerleave", hideTip);
        root.append(dot);
      });
      root.append(svg("text", { class: "strong", x: width - right + 14, y: y + 4 }, fine(mean)));
    });
    container.replaceChildren(root, numbers(["seed", ...rows.map(([name]) => name)], trial.seeds.map((seed, k) => [seed, ...rows.map(([, values]) => (values[k] === undefined ? "" : fine(values[k])))])));
  });
}

/** The effect and its interval on a line with zero. */
function effectChart(container, trial) {
  const [a, b] = trial.interval;
  const reach = Math.max(Math.abs(a), Math.abs(b), Math.abs(trial.effect)) * 1.12 || 1;
  const low = Math.min(0, a) - reach * 0.15, high = Math.max(0, b) + reach * 0.15;
  drawn(container, (width) => {
    const x = (v) => 4 + ((v - low) / (high - low)) * (width - 8);
    container.replaceChildren(svg("svg", { viewBox: `0 0 ${width} 34`, height: 34, width, role: "img", "aria-label": "effect with its interval, beside zero" },
      svg("line", { class: "grid", x1: 0, x2: width, y1: 10, y2: 10 }),
      svg("line", { class: "axis", x1: x(0), x2: x(0), y1: 2, y2: 18 }),
      svg("text", { x: Math.max(16, Math.min(width - 16, x(0))), y: 32, "text-anchor": "middle" }, "zero"),
      svg("line", { x1: x(a), x2: x(b), y1: 10, y2: 10, stroke: "var(--accent)", "stroke-width": 4, "stroke-linecap": "round", opacity: 0.45 }),
      svg("circle", { cx: x(trial.effect), cy: 10, r: 6, fill: "var(--accent)" })));
  });
}

/** Counts over a numeric range. */
function histogramChart(container, part) {
  const place = h("div", {});
  container.append(h("h3", {}, part.split), place);
  const most = Math.max(...part.count), [low, high] = extent(part.edges);
  drawn(place, (width) => {
    const height = 170, foot = 24, left = 4;
    const x = (v) => left + ((v - low) / (high - low || 1)) * (width - 2 * left);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `distribution of the target in ${part.split}` });
    part.count.forEach((count, k) => {
      const tall = (count / most) * (height - foot - 8);
      const bar = svg("rect", { x: x(part.edges[k]) + 0.5, width: Math.max(1, x(part.edges[k + 1]) - x(part.edges[k]) - 1), y: height - foot - tall, height: tall, fill: "var(--bar)" });
      bar.addEventListener("pointermove", (event) => showTip(event.clientX, event.clientY, h("div", { class: "soft" }, `${part.edges[k].toPrecision(4)} to ${part.edges[k + 1].toPrecision(4)}`), h("b", {}, plural(count, "row"))));
      bar.addEventListener("pointerleave", hideTip);
      root.append(bar);
    });
    root.append(svg("line", { class: "axis", x1: left, x2: width - left, y1: height - foot, y2: height - foot }));
    for (const v of ticks(low, high, Math.max(2, Math.floor(width / 90)))) root.append(svg("text", { x: x(v), y: height - 6, "text-anchor": "middle" }, whole(v)));
    place.replaceChildren(root);
  });
}

/** Confusion: a table of numbers for few classes, a heat map to point at for many. */
function confusionChart(container, confusion) {
  const { classes, matrix, pairs } = confusion;
  const totals = matrix ? matrix.map((row) => row.reduce((a, b) => a + b, 0)) : [];
  if (matrix && classes.length <= 12) {
    const cell = (n, r, c) => {
      const share = n / (totals[r] || 1);
      const fill = r === c ? "var(--bar)" : "var(--accent)", strength = r === c ? 12 + 50 * share : Math.min(54, 9 + 130 * share);
      return h("td", { class: n ? "" : "zero", title: `${classes[r]}, predicted ${classes[c]}: ${whole(n)} of ${whole(totals[r])}`, style: n ? { background: `color-mix(in srgb, ${fill} ${strength.toFixed(0)}%, var(--card))` } : {} }, whole(n));
    };
    container.append(h("div", { class: "scroll", style: { maxHeight: "none" }, tabIndex: 0 }, h("table", { class: "matrix" },
      h("thead", {}, h("tr", {}, h("th", {}), classes.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, matrix.map((row, r) => h("tr", {}, h("th", { scope: "row" }, classes[r]), row.map((n, c) => cell(n, r, c))))))));
  } else if (matrix) {
    const n = classes.length;
    const canvas = h("canvas", { class: "heat", width: n, height: n, role: "img", "aria-label": `confusion matrix of ${n} classes; the most frequent confusions are listed below` });
    const draw = () => {
      const context = canvas.getContext("2d"), fill = colour("fill"), bar = colour("mark"), accent = colour("accent");
      context.fillStyle = fill;
      context.fillRect(0, 0, n, n);
      matrix.forEach((row, r) => row.forEach((count, c) => {
        if (!count) return;
        context.globalAlpha = r === c ? 0.2 + (0.6 * count) / totals[r] : Math.min(1, 0.35 + (2 * count) / totals[r]);
        context.fillStyle = r === c ? bar : accent;
        context.fillRect(c, r, 1, 1);
      }));
      context.globalAlpha = 1;
    };
    draw();
    drawings.push(draw);
    canvas.addEventListener("pointermove", (event) => {
      const bounds = canvas.getBoundingClientRect();
      const c = Math.min(n - 1, Math.max(0, Math.floor(((event.clientX - bounds.left) / bounds.width) * n)));
      const r = Math.min(n - 1, Math.max(0, Math.floor(((event.clientY - bounds.top) / bounds.height) * n)));
      showTip(event.clientX, event.clientY, h("div", {}, h("span", { class: "soft" }, "given "), classes[r]), h("div", {}, h("span", { class: "soft" }, "predicted "), classes[c]), h("b", {}, `${whole(matrix[r][c])} of ${whole(totals[r])}`));
    });
    canvas.addEventListener("pointerleave", hideTip);
    container.append(canvas);
  }
  container.append(pairs.length
    ? h("ul", { class: "pairs" }, pairs.slice(0, 8).map(([given, predicted, n, total]) => h("li", {}, `${given} `, h("span", { class: "soft" }, "taken for"), ` ${predicted} `, h("span", { class: "soft" }, `${whole(n)} of ${whole(total)}, ${percent(n / total)}`))))
    : h("p", { class: "soft" }, "No test row is confused."));
}

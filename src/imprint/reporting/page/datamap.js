// The data map: up to ten thousand points on a canvas, read by pointing, by arrow keys, or by drawing a box.

function dataMap(container) {
  const M = data.map, n = M.example.length;
  const names = E.label.values;
  const frequency = new Array(names.length).fill(0);
  for (const i of M.example) if (E.label.code[i] >= 0) frequency[E.label.code[i]]++;
  const ranked = names.map((_, k) => k).sort((a, b) => frequency[b] - frequency[a]);
  const rank = new Map(ranked.map((code, k) => [code, k]));
  const few = names.length <= 10 ? names.length : 9; // colours that can be told apart
  const modes = {
    flagged: { words: "Flagged", groups: [["mark", "no finding"], ["accent", "flagged"]], of: (k) => M.flagged[k] },
    ...(data.task === "classification" && names.length > 1 ? { label: { words: "Label", groups: ranked.slice(0, few).map((code, k) => [`c${k}`, names[code]]).concat(names.length > few ? [["mark", "other"]] : []), of: (k) => Math.min(rank.get(E.label.code[M.example[k]]) ?? few, few) } } : {}),
    ...(M.correctness.some((v) => v !== null) ? { correct: { words: "Learned", groups: [["accent", "never predicted right"], ["k2", "sometimes"], ["mark", "always"]], of: (k) => (M.correctness[k] <= 0.001 ? 0 : M.correctness[k] < 0.999 ? 1 : 2) } } : {}),
  };
  let mode = "flagged", only = "", onlyFlagged = false, at = -1, box = null, geometry = null;

  const canvas = h("canvas", { tabIndex: 0, role: "img", "aria-label": `Data map of ${plural(n, "training example")}. Arrow keys move from point to point, Enter opens one.` });
  const frame = h("div", { class: "box", hidden: true });
  const plot = h("div", { class: "plot" }, canvas, frame);
  const keys = h("div", { class: "keys" });
  const side = h("div", { class: "picked" });
  const shown = (k) => (!onlyFlagged || M.flagged[k]) && (only === "" || E.label.code[M.example[k]] === Number(only));

  const modeButtons = h("div", { class: "chips", role: "group", "aria-label": "Colour by" }, Object.entries(modes).map(([name, m]) => h("button", { type: "button", "data-mode": name, onclick: () => { mode = name; update(); } }, m.words)));
  const labels = [...names.keys()].filter((k) => frequency[k]).sort((a, b) => names[a].localeCompare(names[b], "en", { numeric: true }));
  const controls = h("div", { class: "fields", style: { marginBottom: "14px" } },
    h("div", { class: "field" }, h("span", { class: "soft" }, "Colour by"), modeButtons),
    data.task === "classification" ? h("label", {}, "Class", h("select", { onchange: (event) => { only = event.target.value; update(); } }, h("option", { value: "" }, "all classes"), labels.map((k) => h("option", { value: k }, names[k])))) : null,
    h("div", { class: "field" }, h("span", { class: "soft" }, "Show"), h("button", { type: "button", "aria-pressed": "false", onclick: (event) => { onlyFlagged = !onlyFlagged; event.target.setAttribute("aria-pressed", onlyFlagged); update(); } }, "Flagged only")));
  container.append(controls, h("div", { class: "mapping" }, h("div", {}, plot, keys), side));

  const widest = Math.max(0.1, ...M.variability) * 1.04;
  function draw(width) {
    const height = Math.round(Math.min(Math.max(width * 0.72, 300), 470));
    const narrow = width < 520;
    const ratio = devicePixelRatio || 1, left = 44, foot = 40, head = 26, right = 8;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const x = (v) => left + (v / widest) * (width - left - right), y = (v) => head + (1 - v) * (height - head - foot);
    geometry = { x, y, px: M.variability.map(x), py: M.confidence.map(y) };
    const c = canvas.getContext("2d");
    c.scale(ratio, ratio);
    c.font = `12px ${getComputedStyle(document.body).fontFamily}`;
    const soft = colour("soft"), rule = colour("line");
    c.strokeStyle = rule;
    c.fillStyle = soft;
    c.lineWidth = 1;
    c.textAlign = "right";
    for (const v of [0, 0.2, 0.4, 0.6, 0.8, 1]) {
      c.beginPath(); c.moveTo(left, Math.round(y(v)) + 0.5); c.lineTo(width - right, Math.round(y(v)) + 0.5); c.stroke();
      c.fillText(percent(v), left - 8, y(v) + 4);
    }
    c.textAlign = "center";
    for (const v of ticks(0, widest, Math.floor(width / 90))) c.fillText(percent(v), x(v), height - foot + 18);
    c.textAlign = "left";
    c.fillText(`how sure of the given label${narrow ? "" : " (mean probability over epochs)"}`, left, 12);
    c.textAlign = "center";
    c.fillText(`how much it wavered${narrow ? "" : " (standard deviation over epochs)"}`, (left + width - right) / 2, height - 4);
    const groups = modes[mode].groups;
    const members = groups.map(() => []);
    for (let k = 0; k < n; k++) if (shown(k)) members[modes[mode].of(k)].push(k);
    const order = mode === "correct" ? [2, 1, 0] : groups.map((_, k) => k);
    if (mode === "label" && names.length > few) order.unshift(order.pop());
    const radius = n > 4000 ? 2 : 2.6;
    for (const g of order) {
      c.fillStyle = colour(groups[g][0]);
      c.globalAlpha = groups[g][0] === "mark" ? 0.5 : 0.85;
      c.beginPath();
      for (const k of members[g]) { c.moveTo(geometry.px[k] + radius, geometry.py[k]); c.arc(geometry.px[k], geometry.py[k], radius, 0, 7); }
      c.fill();
    }
    c.globalAlpha = 1;
    c.textAlign = "left";
    c.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    c.lineJoin = "round";
    c.lineWidth = 4;
    c.strokeStyle = colour("page");
    c.fillStyle = colour("ink");
    const note = (words, px, py, align) => { c.textAlign = align; c.strokeText(words, px, py); c.fillText(words, px, py); };
    // At the right edge, where points are few: what is left of each word.
    note("\u2190 learned at once", width - right - 6, y(1) + 18, "right");
    note("unsure", width - right - 6, y(0.5) + 4, "right");
    note("\u2190 never believed", width - right - 6, y(0) - 9, "right");
    if (at >= 0) {
      c.strokeStyle = colour("ink"); c.lineWidth = 2;
      c.beginPath(); c.arc(geometry.px[at], geometry.py[at], 6, 0, 7); c.stroke();
    }
    keys.replaceChildren(...groups.map(([name, words], g) => key(name, `${words} ${whole(members[g].length)}`)));
  }
  drawn(plot, draw);
  const redraw = () => plot.clientWidth && draw(plot.clientWidth);

  function nearest(px, py, reach) {
    let best = -1, least = reach * reach;
    for (let k = 0; k < n; k++) {
      if (!shown(k)) continue;
      const d = (geometry.px[k] - px) ** 2 + (geometry.py[k] - py) ** 2;
      if (d < least) { least = d; best = k; }
    }
    return best;
  }
  function point(k) {
    if (k === at) return;
    at = k;
    redraw();
    if (k < 0) return hideTip();
    const i = M.example[k], bounds = canvas.getBoundingClientRect(), own = text(i);
    showTip(bounds.left + geometry.px[k], bounds.top + geometry.py[k], thumb(i, 96), h("div", {}, h("b", {}, label(i) ?? "no label")), own ? h("div", {}, own.length > 160 ? `${own.slice(0, 160)}…` : own) : null, hasCells && !hasImages && !own ? cells(i, 5) : null,
      h("div", { class: "soft" }, `${place(i)}${M.flagged[k] ? " · flagged" : ""}`), h("div", { class: "soft" }, `sure ${percent(M.confidence[k])}, wavered ${percent(M.variability[k])}`));
  }
  /** The next point in a direction, preferring those straight ahead. */
  function step(dx, dy) {
    if (at < 0) return point([...M.example.keys()].find(shown) ?? -1);
    let best = -1, least = Infinity;
    for (let k = 0; k < n; k++) {
      if (!shown(k)) continue;
      const ax = geometry.px[k] - geometry.px[at], ay = geometry.py[k] - geometry.py[at];
      const ahead = ax * dx + ay * dy, aside = Math.abs(ax * dy - ay * dx);
      if (ahead > 0.5 && ahead + 3 * aside < least) { least = ahead + 3 * aside; best = k; }
    }
    if (best >= 0) point(best);
  }

  let start = null;
  const local = (event) => { const b = canvas.getBoundingClientRect(); return [event.clientX - b.left, event.clientY - b.top]; };
  canvas.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    start = local(event);
    if (event.pointerType === "mouse") canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [px, py] = local(event);
    if (start && event.pointerType === "mouse" && Math.hypot(px - start[0], py - start[1]) > 4) {
      point(-1);
      box = [Math.min(px, start[0]), Math.min(py, start[1]), Math.max(px, start[0]), Math.max(py, start[1])];
      frame.hidden = false;
      Object.assign(frame.style, { left: `${box[0]}px`, top: `${box[1]}px`, width: `${box[2] - box[0]}px`, height: `${box[3] - box[1]}px` });
    } else if (!start) point(nearest(px, py, 14));
  });
  canvas.addEventListener("pointerup", (event) => {
    const [px, py] = local(event);
    if (start && Math.hypot(px - start[0], py - start[1]) <= 4) {
      const k = nearest(px, py, 18);
      if (event.pointerType !== "mouse" && k >= 0 && k !== at) point(k);
      else if (k >= 0) { hideTip(); showExample(M.example[k]); }
      else { box = null; frame.hidden = true; }
    }
    start = null;
    list();
  });
  canvas.addEventListener("pointercancel", () => { start = null; });
  canvas.addEventListener("pointerleave", () => { if (!start) point(-1); });
  canvas.addEventListener("blur", () => point(-1));
  canvas.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) { event.preventDefault(); step(...move); }
    if (event.key === "Enter" && at >= 0) { hideTip(); showExample(M.example[at]); }
    if (event.key === "Escape") { box = null; frame.hidden = true; point(-1); list(); }
  });

  /** What is inside the box, least believed first; without a box, the least believed of all. */
  function list() {
    const chosen = [];
    for (let k = 0; k < n; k++) if (shown(k) && (!box || (geometry.px[k] >= box[0] && geometry.px[k] <= box[2] && geometry.py[k] >= box[1] && geometry.py[k] <= box[3]))) chosen.push(k);
    chosen.sort((a, b) => M.confidence[a] - M.confidence[b]);
    const first = chosen.slice(0, hasImages ? 48 : 16).map((k) => M.example[k]);
    const items = first.map((i) => {
      const picture = thumb(i, 52);
      return h("button", { type: "button", class: hasImages ? "window" : "line", title: `${label(i)} · ${place(i)}`, onclick: () => showExample(i) }, picture || h("span", {}, hasImages ? "" : h("b", {}, breakable(label(i) ?? "no label")), " ", line(i)));
    });
    side.replaceChildren(
      h("p", { class: "told" }, box ? `${plural(chosen.length, "example")} in the box${chosen.length > first.length ? `, the ${first.length} least believed are listed` : ""}.` : matchMedia("(pointer: coarse)").matches ? "The least believed. Touch a dot to see it, and again to open it." : "The least believed. Drag a box over the map to list other examples."),
      h("div", { class: hasImages ? "list" : "list lines" }, items),
      box && chosen.length ? h("p", { style: { marginTop: "10px", display: "flex", gap: "8px" } }, h("button", { type: "button", onclick: () => download(fileName("box.csv"), "text/csv", csv(["id", "position", "label", "confidence", "variability"], chosen.map((k) => [E.id[M.example[k]], position(M.example[k]), label(M.example[k]), M.confidence[k], M.variability[k]]))) }, "Download ids"), h("button", { type: "button", onclick: () => { box = null; frame.hidden = true; list(); } }, "Clear box")) : "");
  }
  function update() {
    for (const button of modeButtons.children) button.setAttribute("aria-pressed", button.dataset.mode === mode);
    redraw();
    if (geometry) list();
  }
  update();
  requestAnimationFrame(() => { redraw(); list(); });
}

// Each section, where the page has a place for it.

function duplicateGroups(container) {
  const PAGE = 12;
  let shown = 0;
  const list = h("div", { class: hasImages ? "pictured" : "" }), more = h("button", { type: "button", style: { marginTop: "16px" }, onclick: () => grow() });
  const group = ({ example, similarity, size }) => {
    const splits = new Set(example.map(split)), labels = new Set(example.map(label));
    const alike = similarity.filter((s) => s !== null), least = alike.length ? Math.min(...alike) : null;
    return h("div", { class: "group" },
      h("header", {}, h("span", {}, plural(size, "example")), least === null ? "" : h("span", {}, least >= 0.9995 ? "exact copies" : `${percent(least, 1)} alike`), splits.size > 1 ? h("span", { class: "flag" }, "crosses splits") : "", labels.size > 1 ? h("span", { class: "flag" }, "labels differ") : ""),
      h("div", { class: `members ${hasImages ? "pictures" : "texts"}` }, example.map((i) => h("div", { class: "member" },
        hasImages ? h("button", { type: "button", class: "window", title: "Look closer", onclick: () => showExample(i) }, thumb(i, 96) || "no picture") : h("div", { class: "body" }, text(i) !== null ? h("div", { class: "quote" }, text(i).trim()) : cells(i, 6) || h("span", { class: "soft" }, "no preview")),
        h("div", { class: "labels" }, h("span", { class: "kept" }, breakable(label(i) ?? "no label"))), h("div", { class: "meta" }, h("span", {}, split(i)), h("span", {}, breakable(place(i))))))),
      size > example.length ? h("p", { class: "meta", style: { marginTop: "8px" } }, `and ${whole(size - example.length)} more`) : "");
  };
  function grow() {
    list.append(...data.groups.slice(shown, shown + PAGE).map(group));
    shown = Math.min(shown + PAGE, data.groups.length);
    more.hidden = shown >= data.groups.length;
    more.textContent = `Show more of ${plural(data.groups.length, "group")}`;
  }
  container.append(list, more);
  grow();
}

function classBalance(container) {
  const B = data.balance, first = 12;
  if (!B.label.length) { container.append(h("p", { class: "empty" }, "There are no labels to count.")); return; }
  const totals = B.count.map((counts) => counts.reduce((a, b) => a + b, 0));
  const widest = Math.max(...B.count.flatMap((counts, s) => counts.map((n) => n / (totals[s] || 1))));
  const main = Math.max(0, B.splits.indexOf("train"));
  const sizes = B.count[main], absent = sizes.filter((n) => n === 0).length, ratio = Math.max(...sizes) / Math.min(...sizes);
  const told = absent ? `${plural(absent, "class has", "classes have")} no ${B.splits[main]} rows.`
    : ratio < 1.5 ? "The classes are balanced." : `The largest class has ${ratio < 10 ? ratio.toFixed(1) : whole(Math.round(ratio))} times as many ${B.splits[main]} rows as the smallest.`;
  const list = h("div", { class: "classes" });
  const row = (k) => [h("div", { class: "name" }, breakable(B.label[k])), h("div", {}, B.splits.map((name, s) => {
    const n = B.count[s][k], suspect = Math.min(B.suspect[s][k], n), scale = (v) => `${(100 * v) / (totals[s] || 1) / widest}%`;
    return h("div", { class: "shares" }, h("span", { class: s === main ? "share" : "share other" }, h("i", { class: "sus", style: { width: scale(suspect) } }), h("i", { style: { width: scale(n - suspect) } })),
      h("span", {}, `${name} ${whole(n)}, ${percent(n / (totals[s] || 1), 1)}${suspect ? `, ${whole(suspect)} suspect` : ""}`));
  }))];
  const extend = (from, to) => list.append(...B.label.slice(from, to).flatMap((_, k) => row(from + k)));
  const all = h("button", { type: "button", style: { marginTop: "16px" }, onclick: () => { extend(first, B.label.length); all.remove(); } }, `Show all ${plural(B.label.length, "class", "classes")}`);
  container.append(h("p", { class: "hint" }, told),
    list, h("div", { class: "keys", style: { marginTop: "14px" } }, key("bar", "share of the split"), key("accent", "of it, suspect labels")), B.label.length > first ? all : "");
  extend(0, first);
}

function copyButtons() {
  for (const box of document.querySelectorAll(".code")) {
    const button = h("button", { type: "button", onclick: async () => {
      const pre = box.querySelector("pre");
      try { await navigator.clipboard.writeText(pre.textContent); button.textContent = "Copied"; }
      catch { getSelection().selectAllChildren(pre); button.textContent = "Selected"; }
      setTimeout(() => { button.textContent = "Copy"; }, 1600);
    } }, "Copy");
    box.append(button);
  }
}

function followSections() {
  const links = new Map([...document.querySelectorAll(".bar nav a")].map((a) => [a.getAttribute("href").slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      if (!isIntersecting) continue;
      links.forEach((a) => a.removeAttribute("aria-current"));
      const link = links.get(target.id);
      if (!link) continue;
      link.setAttribute("aria-current", "true");
      link.parentElement.scrollLeft = Math.max(0, link.offsetLeft - link.parentElement.offsetLeft - 60);
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  document.querySelectorAll("main > section").forEach((section) => seen.observe(section));
}

const draw = (id, make) => { const place = byId(id); if (place) make(place); };
draw("effect", (place) => effectChart(place, data.verdict));
draw("trial", (place) => trialChart(place, data.verdict));
draw("browser", findingsBrowser);
draw("groups", duplicateGroups);
draw("datamap", dataMap);
draw("curves", (place) => data.curves.charts.forEach(({ measure, lines }) => { const chart = h("div", { class: "chart" }); place.append(chart); lineChart(chart, measure, data.curves.epoch, lines); }));
draw("target", (place) => data.target.forEach((part) => { const chart = h("div", { class: "chart" }); place.append(chart); histogramChart(chart, part); }));
draw("classes", classBalance);
draw("confusion", (place) => confusionChart(place, data.confusion));
draw("reliability", (place) => reliabilityChart(place, data.reliability.bins));
copyButtons();
followSections();
setUpTheme();

// The findings browser: filter, look, decide, download.

const F = data.findings;
const kindOf = (f) => decode(F.kind, f);
const kindName = (kind) => data.kinds[kind] || kind;
const suggestionOf = (f) => decode(F.suggestion, f);
const valueOf = (f) => decode(F.value, f);
const findingId = (f) => (F.example[f] < 0 ? F.id[f] : E.id[F.example[f]]);

// Decisions, kept under the corpus' fingerprint so that a later report of the same data finds them again

const decisionKey = `imprint:decisions:${data.fingerprint || data.name}`;
const keyOf = (f) => JSON.stringify([findingId(f), kindOf(f), suggestionOf(f), valueOf(f), decode(F.method, f)]);
const decisions = new Map();
const decisionWatchers = [];
try {
  const kept = new Map(Object.entries(JSON.parse(memory.get(decisionKey) || "{}")));
  for (let f = 0; f < F.kind.code.length; f++) {
    const decision = kept.get(keyOf(f));
    if (decision === "accept" || decision === "reject") decisions.set(f, decision);
  }
} catch { /* what is kept is not ours: start afresh */ }

function decide(list, decision) {
  for (const f of list) decision ? decisions.set(f, decision) : decisions.delete(f);
  memory.set(decisionKey, JSON.stringify(Object.fromEntries([...decisions].map(([f, d]) => [keyOf(f), d]))));
  decisionWatchers.forEach((watch) => watch());
}

const YES = { drop: "Drop", relabel: "Relabel", review: "Confirm" };
function decisionButtons(f) {
  const now = decisions.get(f);
  const toggle = (decision) => (event) => { event.stopPropagation(); decide([f], decisions.get(f) === decision ? null : decision); };
  return h("div", { class: "decide" },
    h("button", { type: "button", class: "yes", "aria-pressed": String(now === "accept"), title: "Accept the suggestion (A)", onclick: toggle("accept") }, YES[suggestionOf(f)] || "Accept"),
    h("button", { type: "button", "aria-pressed": String(now === "reject"), title: "Reject it, keep the example as it is (R)", onclick: toggle("reject") }, "Keep"));
}

function severityBar(f) {
  const value = F.severity[f] ?? 0;
  return h("div", { class: "severity", title: "severity, 0 to 1" }, h("span", { class: "track" }, h("span", { style: { width: percent(value, 1).replace(" ", "") } })), value.toFixed(2));
}

/** Given label, and what is suggested instead. */
function labelLine(f) {
  const i = F.example[f], given = i < 0 ? null : label(i), value = valueOf(f), suggestion = suggestionOf(f);
  if (suggestion === "relabel" && value !== null) return h("div", { class: "labels" }, h("span", { class: "given" }, breakable(given ?? "no label")), " → ", h("span", { class: "new" }, breakable(value)));
  if (i < 0) return h("div", { class: "labels" }, h("span", { class: "kept" }, breakable(findingId(f) ?? "whole data set")));
  const maybe = kindOf(f) === "label" && value !== null && value !== given ? h("span", {}, ", perhaps ", breakable(value)) : "";
  return h("div", { class: "labels" }, h("span", { class: "kept" }, breakable(given ?? "no label")), maybe);
}

const whereabouts = (f) => (F.example[f] < 0 ? ["whole data set"] : [split(F.example[f]), place(F.example[f])]);

function pictureCard(f) {
  const i = F.example[f];
  return h("article", {},
    i < 0 ? h("div", { class: "window", style: { cursor: "default" } }, "no picture") : h("button", { type: "button", class: "window", title: "Look closer", tabIndex: -1, onclick: () => showExample(i) }, thumb(i, 112) || "no picture"),
    labelLine(f), severityBar(f),
    h("div", { class: "meta" }, h("span", {}, [kindName(kindOf(f)), i < 0 ? null : split(i)].filter(Boolean).join(" · ")), h("span", { class: "where" }, i < 0 ? "whole data set" : breakable(place(i)))),
    i < 0 && F.evidence[f] ? h("div", { class: "meta" }, F.evidence[f]) : "",
    decisionButtons(f));
}

function rowCard(f) {
  const i = F.example[f], own = i < 0 ? null : text(i);
  const body = h("div", { class: "body" });
  if (own !== null) {
    const quote = h("div", { class: "quote" }, own.trim());
    body.append(quote);
    if (own.length > 200) {
      const more = h("button", { type: "button", class: "more", "aria-expanded": "false", onclick: () => {
        const open = more.getAttribute("aria-expanded") === "true";
        quote.style.webkitLineClamp = open ? "" : "unset";
        more.setAttribute("aria-expanded", String(!open));
        more.textContent = open ? "Show all of it" : "Show less";
      } }, "Show all of it");
      body.append(more);
      if (lost(i)) body.append(h("span", { class: "evidence" }, ` (${plural(lost(i), "character")} more are in the data)`));
    }
  } else if (i >= 0 && cells(i)) {
    const rest = data.previews.columns.length - 8;
    body.append(cells(i, 8));
    if (rest > 0) body.append(h("button", { type: "button", class: "more", onclick: () => showExample(i) }, `${plural(rest + data.previews.more_columns, "more column")}`));
  } else body.append(h("div", { class: "soft" }, i < 0 ? F.evidence[f] || "" : "No preview of this one is carried in the page."));
  if (F.evidence[f] && i >= 0) body.append(h("div", { class: "evidence" }, F.evidence[f]));
  return h("article", {},
    h("div", { class: "side" }, h("div", { class: "kind" }, kindName(kindOf(f))), severityBar(f), h("div", { class: "meta" }, whereabouts(f).map((word) => h("span", {}, breakable(word))))),
    body,
    h("div", { class: "act" }, labelLine(f), decisionButtons(f)));
}

const COLUMNS = ["id", "position", "kind", "severity", "suggestion", "suggested_value", "method", "evidence", "decision"];
const record = (f) => [findingId(f), F.example[f] < 0 ? null : position(F.example[f]), kindOf(f), F.severity[f], suggestionOf(f), valueOf(f), decode(F.method, f), F.evidence[f], decisions.get(f) || null];
function downloadCsv(list, suffix) { download(fileName(`${suffix}.csv`), "text/csv", csv(COLUMNS, list.map(record))); }
function downloadJson(list, suffix) {
  const rows = list.map((f) => Object.fromEntries(record(f).map((value, k) => [COLUMNS[k], value])));
  download(fileName(`${suffix}.json`), "application/json", JSON.stringify({ format: "imprint-decisions-1", fingerprint: data.fingerprint, decisions: rows }, null, 1));
}

function findingsBrowser(container) {
  const count = F.kind.code.length;
  const PAGE = innerWidth < 600 ? 12 : hasImages ? 36 : 20;
  const state = { kinds: new Set(), label: "", split: "", suggestion: "", method: "", decided: "", least: 0, words: "", sort: "severity", page: 0 };
  // What the search looks through, made once.
  const haystack = Array.from({ length: count }, (_, f) => {
    const i = F.example[f];
    const parts = [findingId(f), valueOf(f), F.evidence[f], i < 0 ? "" : label(i), i < 0 ? "" : position(i), i < 0 ? "" : text(i)];
    if (i >= 0 && data.previews.cells && data.previews.cells[i]) parts.push(...data.previews.cells[i]);
    return parts.filter((part) => part !== null && part !== undefined).join("\n").toLowerCase();
  });
  const passes = (f, skipKinds) => {
    const i = F.example[f];
    return (skipKinds || !state.kinds.size || state.kinds.has(kindOf(f)))
      && (!state.label || (i >= 0 && (label(i) === state.label || valueOf(f) === state.label)))
      && (!state.split || (i >= 0 && split(i) === state.split))
      && (!state.suggestion || suggestionOf(f) === state.suggestion)
      && (!state.method || decode(F.method, f) === state.method)
      && (!state.decided || (decisions.get(f) || "open") === state.decided)
      && (F.severity[f] ?? 0) >= state.least
      && (!state.words || haystack[f].includes(state.words));
  };
  const compare = {
    severity: (a, b) => (F.severity[b] ?? 0) - (F.severity[a] ?? 0),
    mild: (a, b) => (F.severity[a] ?? 0) - (F.severity[b] ?? 0),
    label: (a, b) => String(F.example[a] < 0 ? "" : label(F.example[a])).localeCompare(String(F.example[b] < 0 ? "" : label(F.example[b])), "en", { numeric: true }),
    suggested: (a, b) => String(valueOf(a) ?? "\uffff").localeCompare(String(valueOf(b) ?? "\uffff"), "en", { numeric: true }),
    position: (a, b) => String(F.example[a] < 0 ? "" : position(F.example[a])).localeCompare(String(F.example[b] < 0 ? "" : position(F.example[b])), "en", { numeric: true }),
  };

  const select = (name, words, options) => h("label", {}, words, h("select", { onchange: (event) => { state[name] = event.target.value; update(); } }, options.map(([value, text]) => h("option", { value }, text))));
  const distinct = (column) => [...new Set(column.values)].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const inFindings = (of) => [...new Set(F.example.filter((i) => i >= 0).map(of))].filter((v) => v !== null).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const labels = data.task === "regression" ? [] : inFindings(label), splits = inFindings(split);
  const kinds = F.kind.values.map((kind, k) => [kind, F.kind.code.filter((code) => code === k).length]).sort((a, b) => b[1] - a[1]);
  const chips = h("div", { class: "chips", role: "group", "aria-label": "Kind" }, kinds.map(([kind]) => h("button", { type: "button", "data-kind": kind, onclick: () => { state.kinds.has(kind) ? state.kinds.delete(kind) : state.kinds.add(kind); update(); } }, kindName(kind), h("span", { class: "n" }))));
  const least = h("output", {}, "0.00");
  const search = h("input", { type: "search", placeholder: hasText ? "Search in texts, ids, labels" : hasCells ? "Search in values, ids, labels" : "Search in ids, labels, evidence", "aria-label": "Search", oninput: (event) => { state.words = event.target.value.trim().toLowerCase(); update(); } });
  const fields = h("div", { class: "fields" },
    h("label", { class: "grow" }, "Search", search),
    labels.length > 1 ? select("label", "Class", [["", "all"], ...labels.map((l) => [l, l])]) : null,
    splits.length > 1 ? select("split", "Split", [["", "all"], ...splits.map((s) => [s, s])]) : null,
    F.suggestion.values.length > 1 ? select("suggestion", "Suggestion", [["", "all"], ...distinct(F.suggestion).map((s) => [s, s])]) : null,
    F.method.values.length > 1 ? select("method", "Method", [["", "all"], ...distinct(F.method).map((m) => [m, m])]) : null,
    select("decided", "Decision", [["", "all"], ["open", "open"], ["accept", "accepted"], ["reject", "kept"]]),
    select("sort", "Sort", [["severity", "most severe"], ["mild", "least severe"], ...(labels.length ? [["label", "given label"], ["suggested", "suggested label"]] : []), ["position", "position"]]));
  const slider = h("label", { class: "range" }, h("span", { class: "soft" }, "Severity at least"), h("input", { type: "range", min: 0, max: 1, step: 0.01, value: 0, oninput: (event) => { state.least = Number(event.target.value); least.textContent = state.least.toFixed(2); update(); } }), least);
  const told = h("div", { class: "told", role: "status" });
  let list = [];
  const acceptAll = h("button", { type: "button", onclick: () => decide(list, "accept") });
  const clear = h("button", { type: "button", onclick: () => decide(list, null) }, "Undo these");
  const exportList = h("button", { type: "button", onclick: () => downloadCsv(list, "findings") }, "Download list");
  const decided = () => [...decisions.keys()].sort((a, b) => a - b);
  const exportCsv = h("button", { type: "button", onclick: () => downloadCsv(decided(), "decisions") }, "Decisions CSV");
  const exportJson = h("button", { type: "button", onclick: () => downloadJson(decided(), "decisions") }, "JSON");
  const results = h("div", { class: hasImages ? "cards" : "rows", role: "list" });
  const pager = h("div", { class: "pager" });
  container.append(h("div", { class: "filters" }, h("div", { class: "fields between" }, kinds.length > 1 ? chips : "", slider), fields), h("div", { class: "tally" }, told, acceptAll, clear, exportList, exportCsv, exportJson), results, pager);

  function show(focus) {
    const pages = Math.max(1, Math.ceil(list.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const part = list.slice(state.page * PAGE, (state.page + 1) * PAGE);
    results.replaceChildren(...part.map((f) => {
      const card = hasImages ? pictureCard(f) : rowCard(f);
      const decision = decisions.get(f);
      card.className = `card${decision === "accept" ? " accepted" : decision === "reject" ? " rejected" : ""}`;
      card.tabIndex = 0;
      card.setAttribute("role", "listitem");
      card.dataset.finding = f;
      return card;
    }));
    if (!part.length) results.append(h("p", { class: "empty" }, "No finding passes these filters."));
    const turn = (page) => { state.page = page; show(); container.scrollIntoView({ block: "start" }); };
    pager.replaceChildren(...(pages > 1 ? [h("button", { type: "button", disabled: state.page === 0, onclick: () => turn(state.page - 1) }, "Previous"), h("span", {}, `page ${state.page + 1} of ${pages}`), h("button", { type: "button", disabled: state.page === pages - 1, onclick: () => turn(state.page + 1) }, "Next")] : []));
    if (focus !== undefined) results.children[Math.min(focus, results.children.length - 1)]?.focus();
  }
  function tell() {
    const accepted = [...decisions.values()].filter((d) => d === "accept").length, kept = decisions.size - accepted;
    told.replaceChildren(h("b", {}, list.length === count ? plural(count, "finding") : `${whole(list.length)} of ${plural(count, "finding")}`), decisions.size ? ` · ${whole(accepted)} accepted, ${whole(kept)} kept` : " · keys on a card: A accept, R keep, U undo, arrows move");
    acceptAll.textContent = `Accept ${list.length === 1 ? "this one" : `all ${whole(list.length)}`}`;
    acceptAll.disabled = exportList.disabled = !list.length;
    clear.disabled = !list.some((f) => decisions.has(f));
    exportCsv.disabled = exportJson.disabled = !decisions.size;
    for (const chip of chips.children) chip.setAttribute("aria-pressed", state.kinds.has(chip.dataset.kind));
  }
  function update() {
    const open = [];
    for (let f = 0; f < count; f++) if (passes(f, true)) open.push(f);
    for (const chip of chips.children) chip.querySelector(".n").textContent = whole(open.filter((f) => kindOf(f) === chip.dataset.kind).length);
    list = open.filter((f) => !state.kinds.size || state.kinds.has(kindOf(f)));
    list.sort((a, b) => compare[state.sort](a, b) || compare.severity(a, b) || a - b);
    state.page = 0;
    tell();
    show();
  }
  decisionWatchers.push(() => {
    const focused = [...results.children].indexOf(document.activeElement?.closest?.(".card"));
    tell();
    show(focused >= 0 ? focused : undefined);
  });
  results.addEventListener("keydown", (event) => {
    const card = event.target.closest(".card");
    if (!card || event.ctrlKey || event.metaKey || event.altKey) return;
    const f = Number(card.dataset.finding), all = [...results.children], at = all.indexOf(card);
    const across = hasImages ? Math.max(1, all.filter((c) => c.offsetTop === all[0].offsetTop).length) : 1;
    const move = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across, j: 1, k: -1 }[event.key];
    if (move) { event.preventDefault(); all[at + move]?.focus(); return; }
    const decision = { a: "accept", r: "reject", u: null }[event.key.toLowerCase()];
    if (decision !== undefined) { event.preventDefault(); card.focus(); decide([f], decision); }
    if (event.key === "Enter" && event.target === card && F.example[f] >= 0) showExample(F.example[f]);
  });
  update();
}

/** One example in full: what it is, where it stands, everything found about it. */
function showExample(i) {
  const dialog = byId("detail");
  const found = F.example.flatMap((example, f) => (example === i ? [f] : []));
  const m = data.map.example.indexOf(i);
  const facts = [["Given", label(i) ?? "no label"], ["Predicted", decode(E.predicted, i)], ["Split", split(i)], ["Position", place(i)], ["Id", place(i) === E.id[i] ? null : E.id[i]], ["Sure", m < 0 ? null : percent(data.map.confidence[m], 1)], ["Wavered", m < 0 ? null : percent(data.map.variability[m], 1)]];
  const fill = () => dialog.replaceChildren(
    h("div", { class: "head" }, h("h3", {}, label(i) ?? "no label"), h("button", { type: "button", onclick: () => dialog.close() }, "Close")),
    h("div", { class: "look" }, thumb(i, 224), h("dl", { class: "facts" }, facts.filter(([, value]) => value !== null).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, breakable(value))]))),
    text(i) !== null ? h("div", { class: "full", tabIndex: 0 }, text(i), lost(i) ? h("span", { class: "soft" }, ` … ${plural(lost(i), "more character")}`) : "") : "",
    cells(i) || (text(i) === null && !thumb(i, 10) ? h("p", { class: "soft" }, "No preview of this one is carried in the page; its id leads to it in the data.") : ""),
    data.previews.more_columns && cells(i) ? h("p", { class: "soft" }, `and ${plural(data.previews.more_columns, "more column")}`) : "",
    ...found.map((f) => h("div", { class: "found" }, h("div", { class: "kind" }, kindName(kindOf(f)), h("span", { class: "soft" }, ` · found by ${decode(F.method, f) ?? "unknown"}`)), severityBar(f), labelLine(f), F.evidence[f] ? h("div", { class: "evidence" }, F.evidence[f]) : "", decisionButtons(f))),
    found.length ? "" : h("p", { class: "soft", style: { marginTop: "14px" } }, "Nothing was found wrong with this one."));
  fill();
  const watch = () => fill();
  decisionWatchers.push(watch);
  dialog.onclose = () => decisionWatchers.splice(decisionWatchers.indexOf(watch), 1);
  dialog.showModal();
}

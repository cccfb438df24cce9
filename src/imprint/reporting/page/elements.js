// Building blocks. Data is only ever set as text or as a property, never parsed as markup.

const data = JSON.parse(document.getElementById("payload").textContent);
const byId = (id) => document.getElementById(id);

/** An element with properties, `on...` listeners, `class`, `style` (object), `data-`/`aria-`/`role` attributes and children. */
function h(tag, properties, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties || {})) {
    if (value === undefined || value === null) continue;
    if (name === "class") element.className = value;
    else if (name === "style") Object.assign(element.style, value);
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (/^(aria-|data-|role$|scope$|colspan$|for$)/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.flat().filter((child) => child !== null && child !== ""));
  return element;
}

const whole = new Intl.NumberFormat("en").format;
const percent = (share, digits = 0) => `${(100 * share).toFixed(digits)} %`;
const plural = (n, one, many) => `${whole(n)} ${n === 1 ? one : many || one + "s"}`;
const decode = (column, i) => (column && column.code[i] >= 0 ? column.values[column.code[i]] : null);

/** Text that may break after the joints of long names. */
const breakable = (text) => String(text).split(/(?<=[_/.-])/).flatMap((part, k) => (k ? [h("wbr"), part] : [part]));

// Examples

const E = data.examples;
const label = (i) => decode(E.label, i);
const split = (i) => decode(E.split, i);
const hasText = Boolean(data.previews.text);
const hasImages = Boolean(data.previews.images);
const hasCells = Boolean(data.previews.cells);
const position = (i) => (E.position[i] === null ? E.id[i] : E.position[i]);
const place = (i) => (typeof E.position[i] === "number" ? `row ${whole(E.position[i])}` : String(position(i)));

const sheetUrls = [];
function sheetUrl(s) {
  if (!sheetUrls[s]) {
    const bytes = Uint8Array.from(atob(data.previews.images.sheets[s]), (c) => c.charCodeAt(0));
    sheetUrls[s] = URL.createObjectURL(new Blob([bytes], { type: "image/webp" }));
  }
  return sheetUrls[s];
}

/** The thumbnail of example `i`, its longer side `side` CSS pixels; null if it has none. */
function thumb(i, side) {
  const images = data.previews.images;
  const size = images && images.size[i];
  if (!size) return null;
  const { tile, across } = images;
  const k = i % (across * across);
  const scale = side / Math.max(...size);
  return h("span", {
    class: scale >= 2 && tile <= 48 ? "thumb crisp" : "thumb", role: "img", "aria-label": `example ${E.id[i]}`,
    style: {
      width: `${size[0] * scale}px`, height: `${size[1] * scale}px`,
      backgroundImage: `url(${sheetUrl(Math.floor(i / (across * across)))})`,
      backgroundSize: `${across * tile * scale}px auto`,
      backgroundPosition: `${-(k % across) * tile * scale}px ${-Math.floor(k / across) * tile * scale}px`,
    },
  });
}

/** The text of example `i`, or null. */
function text(i) {
  const texts = data.previews.text;
  return texts && i < texts.length ? texts[i] : null;
}

const lost = (i) => (data.previews.cut && data.previews.cut[i]) || 0;

/** Column-value pairs of example `i`: at most `most` of them. */
function cells(i, most = Infinity) {
  const { columns, cells: rows } = data.previews;
  if (!rows || i >= rows.length) return null;
  const shown = columns.map((name, c) => [name, rows[i][c]]).slice(0, most);
  return h("div", { class: "cells" }, shown.map(([name, value]) => h("div", {}, h("span", {}, `${name} `), value === null ? h("span", {}, "missing") : h("b", {}, value))));
}

/** One line that stands for example `i` where there is no picture. */
function line(i) {
  const own = text(i);
  if (own !== null) return own.slice(0, 140);
  const row = data.previews.cells && data.previews.cells[i];
  return row ? row.filter((value) => value !== null).slice(0, 6).join(" · ") : place(i);
}

// Tooltip, shared by all charts

const tip = byId("tip");
function showTip(x, y, ...children) {
  tip.replaceChildren(...children.flat().filter((child) => child));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(8, x + 16 + width > innerWidth ? x - 16 - width : x + 16)}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - height - 8))}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });

/** A CSS colour variable as the browser resolves it now; canvases cannot read variables. */
const probe = document.body.appendChild(h("span", { hidden: true }));
function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}

function download(name, type, content) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = h("a", { href: url, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}

function csv(columns, rows) {
  const cell = (value) => {
    const string = value === null || value === undefined ? "" : String(value);
    return /[",\n\r]/.test(string) ? `"${string.replaceAll('"', '""')}"` : string;
  };
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

const fileName = (suffix) => `${data.name.replace(/[^\w.-]+/g, "-").slice(0, 60) || "audit"}-${suffix}`;

// Redraw hooks: charts are drawn for a width and for a theme

const drawings = [];
function drawn(container, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = container.clientWidth;
    if (now && now !== width) draw((width = now));
  }).observe(container);
  drawings.push(() => width && draw(width));
}

/** Keep something small in this browser; a page opened from a file may be denied that, and works all the same. */
const memory = {
  get(key) { try { return localStorage.getItem(key); } catch { return null; } },
  set(key, value) { try { localStorage.setItem(key, value); } catch { /* denied or full: kept until the page is closed */ } },
};

function setUpTheme() {
  const button = byId("theme");
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const told = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to the ${dark() ? "light" : "dark"} theme`);
    drawings.forEach((draw) => draw());
  };
  const kept = memory.get("imprint:theme");
  if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    memory.set("imprint:theme", root.dataset.theme);
    told();
  });
  system.addEventListener("change", told);
  told();
}

"use strict";
// The cohort's table: sort, filter, keys. All text is set as text.
const slides = promptmil.slides;
const byId = (id) => document.getElementById(id);
const fixed = (digits) => (value) => (value === null ? "" : value.toFixed(digits));
const COLUMNS = [
  { key: "slide_id", title: "Slide" },
  { key: "predicted", title: "Prediction" },
  { key: "probability", title: "Probability", text: fixed(3) },
  { key: "label", title: "Label" },
  { key: "tiles", title: "Tiles", text: (value) => value.toLocaleString("en") },
  { key: "gain", title: "Gain", text: fixed(3) },
  { key: "p", title: "p", text: (value) => (value === null ? "" : String(Number(value.toPrecision(2)))) },
  { key: "stability", title: "Stability", text: fixed(2) },
  { key: "run", title: "Run" },
].filter(({ key }) => ["slide_id", "predicted", "tiles", "run"].includes(key) || slides.some((slide) => slide[key] !== null && slide[key] !== ""));
const order = { key: null, sign: 1 };
const filters = { find: byId("find"), predicted: byId("of_prediction"), label: byId("of_label"), differing: byId("differing") };

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

function isNumber(column) {
  return column.text !== undefined;
}

function makeCell(slide, column) {
  const value = slide[column.key];
  const cell = element("td", undefined, isNumber(column) ? "number" : "");
  if (column.key === "slide_id") {
    const link = element("a", value);
    link.href = `slides/${encodeURIComponent(value)}/index.html`;
    cell.append(link);
    return cell;
  }
  cell.append(isNumber(column) ? column.text(value) : value);
  if (column.key === "probability" && value !== null) {
    const meter = element("span", undefined, "meter");
    const filled = element("i");
    filled.style.width = `${100 * value}%`;
    meter.append(filled);
    meter.setAttribute("aria-hidden", "true");
    cell.append(meter);
  }
  if (column.key === "predicted" && slide.agrees === false) cell.append(element("span", "differs", "mark"));
  return cell;
}

const rows = slides.map((slide) => {
  const row = element("tr");
  row.append(...COLUMNS.map((column) => makeCell(slide, column)));
  return row;
});

function compare(a, b) {
  const [left, right] = [slides[a][order.key], slides[b][order.key]];
  if (left === right) return a - b;
  if (left === null) return 1; // unknown comes last in either order
  if (right === null) return -1;
  const less = typeof left === "string" ? left.localeCompare(right, "en", { numeric: true }) : left - right;
  return less * order.sign || a - b;
}

function isShown(slide) {
  const words = filters.find.value.toLowerCase();
  const text = [slide.slide_id, slide.label, slide.predicted, slide.run].join("\n").toLowerCase();
  return text.includes(words)
    && (!filters.predicted.value || slide.predicted === filters.predicted.value)
    && (!filters.label.value || slide.label === filters.label.value)
    && (!filters.differing.checked || slide.agrees === false);
}

function show() {
  let places = slides.map((_, place) => place).filter((place) => isShown(slides[place]));
  if (order.key !== null) places = places.sort(compare);
  byId("rows").replaceChildren(...places.map((place) => rows[place]));
  byId("none").hidden = places.length > 0;
  const differing = slides.filter((slide) => slide.agrees === false).length;
  const known = slides.filter((slide) => slide.agrees !== null).length;
  const shown = places.length === slides.length ? `${slides.length} slides` : `${places.length} of ${slides.length} slides`;
  byId("counts").textContent = shown + (known ? `, ${differing} of ${known} differ from their label` : "");
  for (const head of byId("columns").children) {
    const state = head.dataset.key !== order.key ? "none" : order.sign > 0 ? "ascending" : "descending";
    head.setAttribute("aria-sort", state);
  }
}

function sortBy(key) {
  order.sign = order.key === key ? -order.sign : 1;
  order.key = key;
  show();
}

function move(step) {
  const links = [...byId("rows").querySelectorAll("a")];
  const place = links.indexOf(document.activeElement);
  const target = links[place < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(links.length - 1, Math.max(0, place + step))];
  if (target) target.focus();
}

function clear() {
  filters.find.value = filters.predicted.value = filters.label.value = "";
  filters.differing.checked = false;
  show();
}

const KEYS = {
  ArrowDown: () => move(1),
  ArrowUp: () => move(-1),
  "/": () => filters.find.focus(),
  d: () => { filters.differing.checked = !filters.differing.checked; show(); },
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.key === "Escape") {
    clear();
    return;
  }
  const isTyping = event.target.matches("input[type=search], select");
  const isLeaving = event.target === filters.find && event.key === "ArrowDown";
  if ((isTyping && !isLeaving) || !(event.key in KEYS)) return;
  event.preventDefault();
  KEYS[event.key]();
});

for (const column of COLUMNS) {
  const head = element("th", undefined, isNumber(column) ? "number" : "");
  const button = element("button", column.title);
  button.type = "button";
  button.addEventListener("click", () => sortBy(column.key));
  head.scope = "col";
  head.dataset.key = column.key;
  head.append(button);
  byId("columns").append(head);
}
for (const [key, select] of [["predicted", filters.predicted], ["label", filters.label]]) {
  const values = [...new Set(slides.map((slide) => slide[key]))].filter((value) => value !== "").sort();
  select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
  select.parentElement.hidden = values.length < 2;
}
filters.differing.parentElement.hidden = slides.every((slide) => slide.agrees === null);
for (const filter of Object.values(filters)) filter.addEventListener("input", show);
byId("open_help").addEventListener("click", () => byId("help").showModal());
show();

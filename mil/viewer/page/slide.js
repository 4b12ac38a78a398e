"use strict";
// A slide's page: controls, lists, tooltip, keys. Every text from the data is set as text, never as markup.
const slide = promptmil.slide;
const picture = promptmil.picture;
const byId = (id) => document.getElementById(id);
const N_TOPS = 10;
const scales = slide.scales.map(decodeScale);
const places = scales.map((scale) => new Places(scale));
const state = { scale: 0, name: slide.shown, rival: "", layer: slide.layer, opacity: 0.65, threshold: 0, hovered: -1, selected: -1 };
const tops = { for: [], against: [] };
let view = null;
let field = null; // of the map as pixels, made when it is needed
let raster = null;

function element(kind, text, name) {
  const made = document.createElement(kind);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
}

const scaleNow = () => scales[state.scale];
const layersNow = () => [...scaleNow().classes.get(state.name).keys()].filter((layer) => !state.rival || scaleNow().classes.get(state.rival).has(layer));

function draw(context, place) {
  const scale = scaleNow();
  if (byId("shown").checked) {
    context.globalAlpha = state.opacity;
    const isDrawn = !hasOverlap(scale) && drawExactly(context, scale, view, place, state.threshold, slide.colours);
    if (!isDrawn) {
      field = field || makeField(scale, view, slide.bounds_lv0);
      raster = raster || paintField(field, view, state.threshold, slide.colours);
      context.imageSmoothingEnabled = false;
      const [x, y, width, height] = slide.bounds_lv0;
      context.drawImage(raster, place.x(x), place.y(y), width * place.ratio, height * place.ratio);
    }
    context.globalAlpha = 1;
  }
  const colours = { for: view.isSigned ? slide.colours.for : hexColour(slide.colours.amount), against: slide.colours.against };
  if (byId("outlines").checked) {
    for (const side of ["against", "for"]) {
      tops[side].forEach((tile, rank) => drawOutline(context, place.box(scale, tile), `rgb(${colours[side].join(" ")})`, 2, String(rank + 1)));
    }
  }
  if (state.hovered >= 0) drawOutline(context, place.box(scale, state.hovered), "#5c6773", 1.5);
  if (state.selected >= 0) drawOutline(context, place.box(scale, state.selected), "#1c2530", 3);
}

showAbout(); // before the stage, which takes the room that is left
const stage = new Stage(byId("slide_view"), byId("map"), { bounds: slide.bounds_lv0, mpp: slide.slide_mpp, picture, draw });
const crops = picture ? new Crops(picture, slide.bounds_lv0) : null;

// Everything again that depends on what is shown.
function update() {
  if (!layersNow().includes(state.layer)) state.layer = layersNow().includes(slide.layer) ? slide.layer : layersNow()[0];
  view = makeView(scaleNow(), state.name, state.rival, state.layer);
  field = raster = null;
  tops.for = strongest(view, 1, N_TOPS);
  tops.against = view.isSigned ? strongest(view, -1, N_TOPS) : [];
  showChoices();
  showSliders();
  showLegend();
  showTops();
  showTile();
  stage.redraw();
}

function fill(select, values, chosen, textOf = (value) => value) {
  select.replaceChildren(...values.map((value) => new Option(textOf(value), value, false, value === chosen)));
  select.value = chosen;
}

function showChoices() {
  const classText = (name) => (name === slide.background ? `${name} (background)` : name);
  fill(byId("class"), slide.classes, state.name, classText);
  fill(byId("rival"), ["", ...slide.classes.filter((name) => name !== state.name)], state.rival, (name) => (name ? classText(name) : "nothing"));
  fill(byId("layer"), layersNow(), state.layer, (layer) => describe(layer).title);
  fill(byId("magnification"), scales.map((_, place) => String(place)), String(state.scale), (place) => `${shortText(scales[place].tile_um, false, 4)} µm`);
  byId("scale_choice").hidden = scales.length < 2;
  const isBackground = state.name === slide.background && ["contribution", "evidence"].includes(state.layer);
  const beside = view.rival ? ` Here less that of ${view.rival}.` : isBackground ? " The background's is 0 by definition." : "";
  byId("meaning").textContent = view.about.means + beside;
}

function showSliders() {
  byId("opacity_said").textContent = `${Math.round(100 * state.opacity)} %`;
  const bound = view.isSigned ? state.threshold * view.high : view.low + state.threshold * (view.high - view.low);
  byId("threshold_said").textContent = state.threshold ? `${view.isSigned ? "±" : ""}${shortText(bound, false)}` : "nothing hidden";
  byId("opacity").value = Math.round(100 * state.opacity);
  byId("threshold").value = Math.round(100 * state.threshold);
}

function showLegend() {
  document.body.classList.toggle("amount", !view.isSigned);
  byId("legend_title").textContent = view.title;
  drawColourBar(byId("colour_bar"), view, slide.colours, state.opacity);
  const isZero = view.isSigned && view.isFlat && view.values[0] === 0;
  byId("low").textContent = isZero ? "0" : shortText(view.low, view.isSigned);
  byId("middle").textContent = view.isSigned ? "0" : view.unit;
  byId("high").textContent = isZero ? "0" : shortText(view.high, view.isSigned);
  byId("low_word").textContent = view.isSigned ? (view.rival ? `for ${view.rival}` : "against") : "";
  byId("high_word").textContent = view.isSigned ? `for ${view.name}` : "";
}

function showTops() {
  byId("for_title").textContent = view.isSigned ? `Strongest for ${view.name}` : `Highest: ${view.about.title}`;
  byId("against_title").textContent = view.rival ? `Strongest for ${view.rival}` : `Strongest against ${view.name}`;
  byId("against_part").hidden = !view.isSigned;
  for (const side of ["for", "against"]) {
    const items = tops[side].map((tile, rank) => {
      const item = element("li");
      const button = element("button");
      button.type = "button";
      button.dataset.tile = tile;
      if (crops) {
        const canvas = element("canvas");
        canvas.setAttribute("aria-hidden", "true");
        crops.draw(canvas, scaleNow().x[tile], scaleNow().y[tile], ...scaleNow().size_lv0);
        button.append(canvas);
      }
      button.append(element("span", String(rank + 1), "rank"), element("span", shortText(view.values[tile], view.isSigned)));
      button.setAttribute("aria-label", `Tile ${rank + 1}: ${shortText(view.values[tile], view.isSigned)}; go there`);
      button.addEventListener("click", () => goTo(tile));
      item.append(button);
      return item;
    });
    byId(`top_${side}`).replaceChildren(...(items.length ? items : [element("li", "none", "soft")]));
  }
}

// Name and value of every layer of a tile, for the class that is shown.
function figures(tile) {
  const columns = scaleNow().classes.get(state.name);
  const found = [...columns].map(([layer, values]) => ({ layer, title: describe(layer).title, value: values[tile], isSigned: describe(layer).isSigned }));
  if (view.rival) found.unshift({ layer: "margin", title: `${view.about.title} less that of ${view.rival}`, value: view.values[tile], isSigned: true });
  return found;
}

function pairs(rows) {
  return rows.flatMap(({ title, text, layer }) => {
    const value = element("dd", text);
    if (layer) value.dataset.layer = layer;
    return [element("dt", title), value];
  });
}

function showTile() {
  const tile = state.selected;
  byId("no_tile").hidden = tile >= 0;
  const corner = tile < 0 ? [] : [{ title: "Corner, level 0", text: `${scaleNow().x[tile]}, ${scaleNow().y[tile]}` }, { title: "Class", text: state.name }];
  const numbers = tile < 0 ? [] : figures(tile).map(({ layer, title, value }) => ({ layer, title, text: String(value) }));
  byId("tile").replaceChildren(...pairs([...corner, ...numbers]));
  for (const button of document.querySelectorAll(".tops button")) button.setAttribute("aria-current", String(Number(button.dataset.tile) === tile));
}

function showTooltip(tile, left, top) {
  const tip = byId("tooltip");
  tip.hidden = tile < 0;
  if (tile < 0) return;
  const list = element("dl");
  const near = figures(tile).filter(({ layer, value }) => !layer.startsWith(CONCEPT) || value >= 0.2 || layer === state.layer);
  list.append(...pairs(near.map(({ layer, title, value, isSigned }) => ({ layer, title, text: numberText(value, isSigned) }))));
  tip.replaceChildren(element("b", `${state.name}, tile at ${scaleNow().x[tile]}, ${scaleNow().y[tile]}`), list);
  const { clientWidth, clientHeight } = byId("stage");
  tip.style.left = `${Math.max(4, left + 18 + tip.offsetWidth > clientWidth ? left - 18 - tip.offsetWidth : left + 18)}px`;
  tip.style.top = `${Math.max(4, Math.min(top + 14, clientHeight - tip.offsetHeight - 4))}px`;
}

function tileAt(event) {
  const box = byId("stage").getBoundingClientRect();
  const [left, top] = [event.clientX - box.left, event.clientY - box.top];
  return [places[state.scale].at(...stage.placement().from(left, top)), left, top];
}

function hover(event) {
  if (!stage.isReady) return;
  const isOver = event.type !== "pointerleave" && event.buttons === 0 && byId("slide_view").contains(event.target);
  const [tile, left, top] = isOver ? tileAt(event) : [-1, 0, 0];
  if (tile !== state.hovered) {
    state.hovered = tile;
    stage.redraw();
  }
  showTooltip(tile, left, top);
}

function select(tile) {
  state.selected = tile;
  showTile();
  if (tile >= 0) byId("said").textContent = `Tile at ${scaleNow().x[tile]}, ${scaleNow().y[tile]}: ${view.title} ${shortText(view.values[tile], view.isSigned)}`;
  stage.redraw();
}

function goTo(tile) {
  stage.zoomTo(scaleNow().x[tile], scaleNow().y[tile], ...scaleNow().size_lv0, 1);
  select(tile);
}

function nextTop(side) {
  const list = tops[side];
  if (list.length) goTo(list[(list.indexOf(state.selected) + 1) % list.length]);
}

// Change what is shown; the selected tile is another one at another magnification.
function choose(changes) {
  if (changes.scale !== undefined && changes.scale !== state.scale) state.selected = state.hovered = -1;
  Object.assign(state, changes);
  if (state.rival === state.name) state.rival = "";
  update();
}

// Change how strong it is shown.
function adjust(changes) {
  if (changes.threshold !== undefined) raster = null;
  Object.assign(state, changes);
  showSliders();
  drawColourBar(byId("colour_bar"), view, slide.colours, state.opacity);
  stage.redraw();
}

function turn(values, value, step) {
  return values[(values.indexOf(value) + step + values.length) % values.length];
}

function flip(id) {
  byId(id).checked = !byId(id).checked;
  stage.redraw();
}

function follow(id) {
  if (byId(id).href) byId(id).click();
}

const bounded = (value) => Math.min(1, Math.max(0, Math.round(100 * value) / 100));
const KEYS = {
  ArrowLeft: () => stage.move(-1, 0),
  ArrowRight: () => stage.move(1, 0),
  ArrowUp: () => stage.move(0, -1),
  ArrowDown: () => stage.move(0, 1),
  "+": () => stage.zoomBy(1.5),
  "=": () => stage.zoomBy(1.5),
  "-": () => stage.zoomBy(1 / 1.5),
  0: () => stage.home(),
  f: () => nextTop("for"),
  a: () => nextTop("against"),
  v: () => choose({ rival: turn(["", ...slide.classes.filter((name) => name !== state.name)], state.rival, 1) }),
  l: () => choose({ layer: turn(layersNow(), state.layer, 1) }),
  L: () => choose({ layer: turn(layersNow(), state.layer, -1) }),
  m: () => flip("shown"),
  b: () => flip("outlines"),
  o: () => adjust({ opacity: bounded(state.opacity - 0.1) }),
  O: () => adjust({ opacity: bounded(state.opacity + 0.1) }),
  t: () => adjust({ threshold: bounded(state.threshold - 0.05) }),
  T: () => adjust({ threshold: bounded(state.threshold + 0.05) }),
  "[": () => follow("previous"),
  "]": () => follow("next"),
  Escape: () => select(-1),
  "?": () => byId("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open || event.target.matches("select")) return;
  if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  const name = /^[1-9]$/.test(event.key) ? slide.classes[Number(event.key) - 1] : undefined;
  if (name === undefined && !(event.key in KEYS)) return;
  event.preventDefault();
  if (name !== undefined) choose({ name });
  else KEYS[event.key]();
});

byId("class").addEventListener("change", (event) => choose({ name: event.target.value }));
byId("rival").addEventListener("change", (event) => choose({ rival: event.target.value }));
byId("layer").addEventListener("change", (event) => choose({ layer: event.target.value }));
byId("magnification").addEventListener("change", (event) => choose({ scale: Number(event.target.value) }));
byId("opacity").addEventListener("input", (event) => adjust({ opacity: Number(event.target.value) / 100 }));
byId("threshold").addEventListener("input", (event) => adjust({ threshold: Number(event.target.value) / 100 }));
for (const id of ["shown", "outlines"]) byId(id).addEventListener("change", () => stage.redraw());
byId("zoom_in").addEventListener("click", () => stage.zoomBy(1.5));
byId("zoom_out").addEventListener("click", () => stage.zoomBy(1 / 1.5));
byId("whole").addEventListener("click", () => stage.home());
byId("open_help").addEventListener("click", () => byId("help").showModal());
for (const kind of ["pointermove", "pointerleave"]) byId("stage").addEventListener(kind, hover, true);
stage.osd.addHandler("canvas-click", (event) => { if (event.quick) select(tileAt(event.originalEvent)[0]); });
update();

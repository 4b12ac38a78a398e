"use strict";
// What can be shown: the numbers of every tile, and what each layer of them means.
const LAYERS = {
  contribution: { title: "Contribution", isSigned: true, unit: "logits", means: "What each tile adds to the logit: all tiles and the bias sum to it." },
  evidence: { title: "Evidence", isSigned: true, unit: "logits", means: "What each tile would say for the class if it counted fully." },
  attention: { title: "Attention", isSigned: false, unit: "share", means: "How much each tile counts for the class, not what it says." },
  similarity: { title: "Similarity", isSigned: false, unit: "scaled cosine", means: "How much each tile resembles the words of the class, before any training." },
  occlusion: { title: "Occlusion", isSigned: true, unit: "logits", means: "What the logit loses without the tile." },
};
const CONCEPT = "concept: ";

function decode(text, Kind) {
  return new Kind(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);
}

function decodeAll(columns) {
  return new Map(Object.entries(columns).map(([name, text]) => [name, decode(text, Float64Array)]));
}

// One magnification: x and y of the tiles, and by class its layers and its concepts' shares.
function decodeScale(scale) {
  const classes = new Map();
  for (const [name, layers] of Object.entries(scale.layers)) {
    const shares = [...decodeAll(scale.shares[name])].map(([concept, values]) => [CONCEPT + concept, values]);
    classes.set(name, new Map([...decodeAll(layers), ...shares]));
  }
  const x = decode(scale.x, Int32Array);
  return { ...scale, x, y: decode(scale.y, Int32Array), count: x.length, classes };
}

function describe(layer) {
  if (!layer.startsWith(CONCEPT)) return LAYERS[layer];
  const name = layer.slice(CONCEPT.length);
  return { title: `Concept “${name}”`, isSigned: false, unit: "share", means: "The concept's share of the tile, among the concepts of the class." };
}

// The values of what is shown, and the numbers at the ends of its colours.
function makeView(scale, name, rival, layer) {
  const own = scale.classes.get(name).get(layer);
  const other = rival ? scale.classes.get(rival).get(layer) : null;
  const about = describe(layer);
  const values = other ? own.map((value, tile) => value - other[tile]) : own;
  const isSigned = about.isSigned || other !== null;
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < least) least = value;
    if (value > most) most = value;
  }
  const limit = Math.max(Math.abs(least), Math.abs(most), 1e-9);
  const isShare = layer.startsWith(CONCEPT);
  const [low, high] = isSigned ? [-limit, limit] : isShare ? [0, 1] : [layer === "attention" ? 0 : least, Math.max(most, least + 1e-9)];
  const subject = rival ? `${name} against ${rival}` : name;
  return { values, isSigned, isFlat: least === most, low, high, name, rival, layer, about, title: `${about.title}, ${subject}`, unit: about.unit };
}

// -1 .. 1 where signed, else 0 .. 1.
function strength(view, tile) {
  const value = view.values[tile];
  return view.isSigned ? value / view.high : (value - view.low) / (view.high - view.low);
}

function numberText(value, isSigned) {
  const text = String(Number(value.toPrecision(6)));
  return isSigned && value > 0 ? `+${text}` : text;
}

function shortText(value, isSigned, digits = 3) {
  const isTiny = value !== 0 && Math.abs(value) < 0.001;
  const text = isTiny ? value.toExponential(1) : String(Number(value.toPrecision(digits)));
  return isSigned && value > 0 ? `+${text}` : text;
}

// The tiles with the largest (or smallest) value; only those that say something.
function strongest(view, sign, count) {
  const order = Array.from(view.values.keys()).filter((tile) => (view.isSigned ? sign * view.values[tile] > 0 : view.values[tile] > view.low));
  const { values } = view;
  return order.sort((a, b) => sign * (values[b] - values[a]) || a - b).slice(0, count);
}

// Which tile lies at a place; of several the one whose centre is nearest.
class Places {
  constructor(scale) {
    this.scale = scale;
    [this.width, this.height] = scale.size_lv0;
    this.cells = new Map();
    for (let tile = 0; tile < scale.count; tile += 1) {
      const key = this.key(Math.floor(scale.x[tile] / this.width), Math.floor(scale.y[tile] / this.height));
      if (!this.cells.has(key)) this.cells.set(key, []);
      this.cells.get(key).push(tile);
    }
  }

  key(column, row) {
    return row * 4194304 + column; // columns fit: a slide has fewer tiles than 2^22 along a side
  }

  at(x, y) {
    const [column, row] = [Math.floor(x / this.width), Math.floor(y / this.height)];
    let [found, nearest] = [-1, Infinity];
    for (const [c, r] of [[column, row], [column - 1, row], [column, row - 1], [column - 1, row - 1]]) {
      for (const tile of this.cells.get(this.key(c, r)) || []) {
        const [dx, dy] = [x - this.scale.x[tile], y - this.scale.y[tile]];
        const distance = Math.hypot(dx - this.width / 2, dy - this.height / 2);
        if (dx >= 0 && dy >= 0 && dx < this.width && dy < this.height && distance < nearest) [found, nearest] = [tile, distance];
      }
    }
    return found;
  }
}

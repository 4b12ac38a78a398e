"use strict";
// Colours of the map, and the map as pixels. Orange speaks for, purple against, pale is nothing.
const PALE = [247, 247, 247];
const MOST_PIXELS = 4096;
const PIXELS_A_TILE = 8;
const MOST_EXACT = 6000; // rectangles a frame
const COLOURS = 512; // from nothing to the strongest

function hexColour(text) {
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
}

function endColour(view, value, colours) {
  if (!view.isSigned) return hexColour(colours.amount);
  return value < 0 ? colours.against : colours.for;
}

// Red, green, blue, and how much of it: what is weak lets the tissue through.
function colourOf(view, value, colours) {
  const amount = Math.min(1, Math.abs(value));
  const end = endColour(view, value, colours);
  const share = 0.3 + 0.7 * amount;
  const mixed = PALE.map((pale, channel) => Math.round(pale + share * (end[channel] - pale)));
  return [...mixed, 0.12 + 0.88 * amount];
}

function isHidden(value, threshold) {
  return Math.abs(value) < threshold;
}

// For each pixel, row by row, the mean of the tiles that cover its centre, as `mil.heatmap.tile_raster` has it; else NaN.
function meanOfCovering(scale, view, bounds, columns, rows) {
  const [x0, y0, width, height] = bounds;
  const stride = columns + 1;
  const [sum, count] = [new Float64Array(stride * (rows + 1)), new Float64Array(stride * (rows + 1))];
  const first = (start, pixel, most) => Math.min(most, Math.max(0, Math.ceil(start / pixel - 0.5)));
  const add = (place, sign, value) => {
    sum[place] += sign * value;
    count[place] += sign;
  };
  for (let tile = 0; tile < scale.count; tile += 1) {
    const [x, y, value] = [scale.x[tile] - x0, scale.y[tile] - y0, strength(view, tile)];
    const [left, right] = [first(x, width / columns, columns), first(x + scale.size_lv0[0], width / columns, columns)];
    const [top, bottom] = [first(y, height / rows, rows), first(y + scale.size_lv0[1], height / rows, rows)];
    add(top * stride + left, 1, value);
    add(top * stride + right, -1, value);
    add(bottom * stride + left, -1, value);
    add(bottom * stride + right, 1, value);
  }
  const means = new Float32Array(columns * rows);
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column <= columns; column += 1) {
      const place = row * stride + column;
      for (const part of [sum, count]) {
        if (row > 0) part[place] += part[place - stride];
        if (column > 0) part[place] += part[place - 1];
        if (row > 0 && column > 0) part[place] -= part[place - stride - 1];
      }
      if (column < columns) means[row * columns + column] = count[place] > 0.5 ? sum[place] / count[place] : NaN;
    }
  }
  return means;
}

function makeField(scale, view, bounds) {
  const pixels = hasOverlap(scale) ? PIXELS_A_TILE : PIXELS_A_TILE / 2; // what is near is drawn exactly where it can be
  const pixel = Math.max(Math.min(...scale.size_lv0) / pixels, Math.max(bounds[2], bounds[3]) / MOST_PIXELS);
  const [columns, rows] = [Math.max(1, Math.round(bounds[2] / pixel)), Math.max(1, Math.round(bounds[3] / pixel))];
  return { columns, rows, means: meanOfCovering(scale, view, bounds, columns, rows) };
}

// Red, green, blue, alpha in one number for each of 2 n + 1 values from -1 to 1.
function colourTable(view, colours, n) {
  const bytes = new Uint8ClampedArray(4 * (2 * n + 1));
  for (let place = 0; place <= 2 * n; place += 1) {
    const [red, green, blue, alpha] = colourOf(view, place / n - 1, colours);
    bytes.set([red, green, blue, Math.round(255 * alpha)], 4 * place);
  }
  return new Uint32Array(bytes.buffer);
}

function paintField(field, view, threshold, colours) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [field.columns, field.rows];
  const context = canvas.getContext("2d");
  const image = context.createImageData(field.columns, field.rows);
  const pixels = new Uint32Array(image.data.buffer);
  const table = colourTable(view, colours, COLOURS);
  field.means.forEach((value, place) => {
    if (!Number.isNaN(value) && !isHidden(value, threshold)) pixels[place] = table[Math.round((value + 1) * COLOURS)];
  });
  context.putImageData(image, 0, 0);
  return canvas;
}

function hasOverlap(scale) {
  return scale.step_lv0[0] < scale.size_lv0[0] - 1 || scale.step_lv0[1] < scale.size_lv0[1] - 1;
}

// Tiles as rectangles to the pixel of the screen; false when there are too many in view for that.
function drawExactly(context, scale, view, place, threshold, colours) {
  const inView = [];
  for (let tile = 0; tile < scale.count; tile += 1) {
    const [left, top, right, bottom] = place.box(scale, tile);
    if (right < 0 || bottom < 0 || left > place.width || top > place.height) continue;
    inView.push([tile, Math.round(left), Math.round(top), Math.round(right), Math.round(bottom)]);
    if (inView.length > MOST_EXACT) return false;
  }
  for (const [tile, left, top, right, bottom] of inView) {
    const value = strength(view, tile);
    if (isHidden(value, threshold)) continue;
    const [red, green, blue, alpha] = colourOf(view, value, colours);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha})`;
    context.fillRect(left, top, right - left, bottom - top);
  }
  return true;
}

function drawOutline(context, box, colour, width, text) {
  const [left, top, right, bottom] = box;
  context.lineJoin = "round";
  for (const [style, line] of [["#fff", width + 2.5], [colour, width]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.strokeRect(left, top, right - left, bottom - top);
  }
  if (!text || right - left < 34) return;
  context.font = "600 12px system-ui, 'Liberation Sans', Arial, sans-serif";
  context.fillStyle = colour;
  context.fillRect(left, top, 8 + context.measureText(text).width, 17);
  context.fillStyle = "#fff";
  context.fillText(text, left + 4, top + 13);
}

function drawColourBar(canvas, view, colours, opacity) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (let column = 0; column < canvas.width; column += 1) {
    const share = column / (canvas.width - 1);
    const [red, green, blue, alpha] = colourOf(view, view.isSigned ? 2 * share - 1 : share, colours);
    context.fillStyle = `rgb(${red} ${green} ${blue} / ${alpha * opacity})`;
    context.fillRect(column, 0, 1, canvas.height);
  }
}

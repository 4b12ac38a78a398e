"use strict";
// Small pictures of tiles, put together from the pyramid's own files.
const CROP_PX = 96;

class Crops {
  constructor(picture, bounds) {
    Object.assign(this, { picture, bounds });
    this.images = new Map();
  }

  image(level, column, row) {
    const url = `${this.picture.folder}/${level}/${column}_${row}.jpg`;
    if (!this.images.has(url)) {
      const image = new Image();
      const loaded = new Promise((resolve) => {
        image.addEventListener("load", () => resolve(image));
        image.addEventListener("error", () => resolve(null));
      });
      image.src = url;
      this.images.set(url, loaded);
    }
    return this.images.get(url);
  }

  // Draw level-0 pixels x, y, width, height onto a canvas, from the coarsest level that is fine enough.
  async draw(canvas, x, y, width, height) {
    const { picture } = this;
    const halvings = Math.floor(Math.log2(Math.max(1, width / picture.factor / CROP_PX)));
    const level = Math.max(picture.first_level, picture.last_level - halvings);
    const pixel = picture.factor * 2 ** (picture.last_level - level);
    const [left, top] = [(x - this.bounds[0]) / pixel, (y - this.bounds[1]) / pixel];
    const [right, bottom] = [left + width / pixel, top + height / pixel];
    [canvas.width, canvas.height] = [CROP_PX, CROP_PX];
    const context = canvas.getContext("2d");
    const [acrossX, acrossY] = [CROP_PX / (right - left), CROP_PX / (bottom - top)];
    const side = picture.tile_px;
    for (let row = Math.max(0, Math.floor(top / side)); row * side < bottom; row += 1) {
      for (let column = Math.max(0, Math.floor(left / side)); column * side < right; column += 1) {
        const image = await this.image(level, column, row);
        if (!image) continue;
        const [startX, startY] = [Math.max(0, column * side - picture.overlap_px), Math.max(0, row * side - picture.overlap_px)];
        context.drawImage(image, (startX - left) * acrossX, (startY - top) * acrossY, image.naturalWidth * acrossX, image.naturalHeight * acrossY);
      }
    }
  }
}

"use strict";
// The slide on the screen: OpenSeadragon moves it, the map is drawn over it, the scale bar measures it.
const BAR_PX = 150;

function roundLength(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((one) => one <= length));
}

function lengthText(um) {
  return um < 1000 ? `${Number(um.toPrecision(3))} µm` : `${Number((um / 1000).toPrecision(3))} mm`;
}

class Stage {
  // `bounds` is the scanned area: one unit of OpenSeadragon's world is its width.
  constructor(element, canvas, { bounds, mpp, picture, draw }) {
    Object.assign(this, { element, canvas, bounds, mpp, draw });
    const [, , width, height] = bounds;
    this.osd = OpenSeadragon({
      element,
      drawer: "canvas",
      tileSources: [{ tileSource: picture ? Stage.pyramid(picture) : Stage.blank(width, height), width: picture ? (picture.width * picture.factor) / width : 1 }],
      tabIndex: "", // the page's own element takes the focus
      showNavigationControl: false,
      gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
      gestureSettingsTouch: { clickToZoom: false, pinchRotate: false },
      animationTime: matchMedia("(prefers-reduced-motion: reduce)").matches ? 0 : 0.5,
      maxZoomPixelRatio: picture ? 4 * picture.factor : 2,
      minZoomImageRatio: 0.6,
      visibilityRatio: 0.3,
      imageSmoothingEnabled: true,
      crossOriginPolicy: false,
      timeout: 60000,
    });
    this.osd.addHandler("canvas-key", (event) => { event.preventDefaultAction = true; }); // keys are the page's
    for (const name of ["update-viewport", "resize", "open"]) this.osd.addHandler(name, () => this.redraw());
    this.osd.addHandler("open", () => this.osd.viewport.goHome(true));
    new ResizeObserver(() => this.redraw()).observe(element);
  }

  static pyramid(picture) {
    return {
      width: picture.width,
      height: picture.height,
      tileSize: picture.tile_px,
      tileOverlap: picture.overlap_px,
      minLevel: picture.first_level,
      maxLevel: picture.last_level,
      getTileUrl: (level, column, row) => `${picture.folder}/${level}/${column}_${row}.jpg`,
    };
  }

  static blank(width, height) {
    return { width, height, tileSize: 512, minLevel: 0, maxLevel: 0, getTileUrl: () => "", tileExists: () => false };
  }

  get isReady() {
    return this.osd.world.getItemCount() > 0;
  }

  // Screen pixels of CSS to a level-0 pixel along x, and where the scanned area's corner is on the screen.
  placement() {
    const { viewport } = this.osd;
    const corner = viewport.viewportToViewerElementCoordinates(new OpenSeadragon.Point(0, 0));
    const end = viewport.viewportToViewerElementCoordinates(new OpenSeadragon.Point(1, 0));
    const ratio = (end.x - corner.x) / this.bounds[2];
    const [x0, y0] = this.bounds;
    return {
      ratio,
      width: this.element.clientWidth,
      height: this.element.clientHeight,
      x: (x) => corner.x + (x - x0) * ratio,
      y: (y) => corner.y + (y - y0) * ratio,
      box(scale, tile) {
        const [left, top] = [this.x(scale.x[tile]), this.y(scale.y[tile])];
        return [left, top, left + scale.size_lv0[0] * ratio, top + scale.size_lv0[1] * ratio];
      },
      from: (left, top) => [x0 + (left - corner.x) / ratio, y0 + (top - corner.y) / ratio],
    };
  }

  redraw() {
    if (!this.isReady) return;
    const place = this.placement();
    const dots = window.devicePixelRatio || 1;
    const [width, height] = [Math.round(place.width * dots), Math.round(place.height * dots)];
    if (this.canvas.width !== width || this.canvas.height !== height) [this.canvas.width, this.canvas.height] = [width, height];
    const context = this.canvas.getContext("2d");
    context.setTransform(dots, 0, 0, dots, 0, 0);
    context.clearRect(0, 0, place.width, place.height);
    this.draw(context, place);
    this.measure(place);
  }

  measure(place) {
    const umAPixel = this.mpp[0] / place.ratio;
    const um = roundLength(Math.min(BAR_PX, place.width / 3) * umAPixel);
    document.getElementById("bar").style.width = `${um / umAPixel}px`;
    document.getElementById("length").textContent = lengthText(um);
    document.getElementById("resolution").textContent = `${Number(umAPixel.toPrecision(3))} µm a pixel`;
    document.getElementById("scale").setAttribute("aria-label", `Scale bar: ${lengthText(um)}`);
  }

  zoomTo(x, y, width, height, margin) {
    const unit = this.bounds[2];
    const rectangle = new OpenSeadragon.Rect(
      (x - this.bounds[0] - width * margin) / unit,
      (y - this.bounds[1] - height * margin) / unit,
      (width * (1 + 2 * margin)) / unit,
      (height * (1 + 2 * margin)) / unit,
    );
    this.osd.viewport.fitBounds(rectangle);
  }

  zoomBy(factor) {
    this.osd.viewport.zoomBy(factor);
    this.osd.viewport.applyConstraints();
  }

  move(x, y) {
    const shift = new OpenSeadragon.Point(x * this.element.clientWidth * 0.2, y * this.element.clientHeight * 0.2);
    this.osd.viewport.panBy(this.osd.viewport.deltaPointsFromPixels(shift));
    this.osd.viewport.applyConstraints();
  }

  home() {
    this.osd.viewport.goHome();
  }
}

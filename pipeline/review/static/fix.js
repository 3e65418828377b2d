// Fixing a mask: clicks and boxes ask the server's model, the brush paints; every step can be taken back.

import * as api from "./api.js";
import { area, bounds, decode, empty, encode, outline, stroke, tint } from "./rle.js";

const DRAG = 6; // screen pixels from which on a press is a box

export class Fix {
  // stage draws; said(text) tells the person; changed() after every new mask.
  constructor(stage, load, frame_index, most, { said, changed }) {
    Object.assign(this, { stage, load, frame_index, most, said, changed });
    const { height, width } = load.item;
    this.rle = load.shapes.get(frame_index)?.rle ?? empty(height, width);
    this.points = [];
    this.box = null;
    this.strokes = 0;
    this.steps = [];
    this.mode = "add";
    this.radius = Math.max(2, Math.round(Math.min(height, width) / 40));
    this.drag = null;
    this.at = null;
    this.asked = 0; // number of the newest question to the model
    this.busy = false;
    this.stale = false; // a newer question waits for the running one
    stage.tool = this;
    this.view();
  }

  get brushing() {
    return this.mode === "brush" || this.mode === "erase";
  }

  get touched() {
    return this.steps.length > 0;
  }

  get empty() {
    return area(this.rle) === 0;
  }

  use(mode) {
    this.mode = mode;
    this.stage.canvas.dataset.tool = mode;
    this.stage.draw();
  }

  sized(factor) {
    this.radius = Math.min(200, Math.max(1, this.radius * factor));
    this.stage.draw();
  }

  remember() {
    this.steps.push({ rle: this.rle, points: [...this.points], box: this.box, strokes: this.strokes });
  }

  // Takes back the last step. Returns: whether there was one.
  back() {
    const step = this.steps.pop();
    if (!step) return false;
    this.asked++; // what is on its way is not wanted any more
    this.stale = false;
    Object.assign(this, step);
    this.view();
    this.changed();
    return true;
  }

  clear() {
    this.remember();
    this.asked++;
    this.stale = false;
    this.points = [];
    this.box = null;
    this.rle = empty(this.load.item.height, this.load.item.width);
    this.view();
    this.changed();
  }

  view() {
    const { colour } = this.load.item;
    this.stage.show({ tint: tint(this.rle, colour), path: outline(this.rle), colour });
  }

  inside([x, y]) {
    const { width, height } = this.load.item;
    return [Math.min(width - 1, Math.max(0, Math.floor(x))), Math.min(height - 1, Math.max(0, Math.floor(y)))];
  }

  down(at, event) {
    const background = event.shiftKey || event.button === 2;
    this.drag = { from: at, to: at, background };
    if (!this.brushing) return;
    this.drag.value = (this.mode === "brush") !== background ? 1 : 0;
    this.remember();
    this.asked++;
    this.stale = false;
    this.strokes++;
    this.pixels = decode(this.rle);
    this.paint(at, at);
  }

  move(at) {
    this.at = at;
    if (!this.drag) return;
    if (this.brushing) this.paint(this.drag.to, at);
    this.drag.to = at;
    this.stage.draw();
  }

  hover(at) {
    this.at = at;
    if (this.brushing) this.stage.draw();
  }

  leave() {
    this.at = null;
    this.stage.draw();
  }

  // A second finger came down, or the browser took the pointer away.
  cancel() {
    if (this.drag && this.brushing) this.back();
    this.drag = null;
    this.stage.draw();
  }

  up(at) {
    const drag = this.drag;
    this.drag = null;
    if (!drag) return;
    if (this.brushing) {
      this.rle = encode(this.pixels);
      this.view();
      return this.changed();
    }
    const far = Math.hypot(at[0] - drag.from[0], at[1] - drag.from[1]) * this.stage.view.scale;
    if (far >= DRAG) {
      const { width, height } = this.load.item, sorted = (i, top) => [drag.from[i], at[i]].sort((a, b) => a - b).map((v) => Math.min(top, Math.max(0, Math.round(v))));
      const [[x0, x1], [y0, y1]] = [sorted(0, width), sorted(1, height)];
      if (x1 - x0 < 2 || y1 - y0 < 2) return;
      this.remember();
      this.box = [x0, y0, x1, y1];
    } else {
      if (this.points.length >= this.most) return this.said(`${this.most} clicks are the most; the brush does the rest`);
      this.remember();
      this.points = [...this.points, [...this.inside(at), drag.background !== (this.mode === "remove") ? 0 : 1]];
    }
    this.stage.draw();
    this.ask();
  }

  paint(from, to) {
    stroke(this.pixels, from, to, this.radius, this.drag.value);
    this.repaint ??= requestAnimationFrame(() => {
      this.repaint = null;
      if (this.drag) this.stage.show({ tint: this.tinted(), path: null });
    });
  }

  tinted() {
    return tint(encode(this.pixels), this.load.item.colour);
  }

  // Asks the model for the mask of all clicks so far; while it answers, only the newest question waits.
  async ask() {
    const number = ++this.asked;
    this.changed();
    if (this.busy) { this.stale = true; return; }
    this.busy = true;
    this.changed();
    const started = performance.now();
    try {
      const mask = this.empty ? null : this.rle;
      const reply = await api.segment(this.load.item.item_id, { frame_index: this.frame_index, points: this.points, box: this.box, mask });
      if (number === this.asked && !this.closed) {
        this.rle = reply.mask;
        this.view();
        this.stage.paint();
        performance.measure("click", { start: started, end: performance.now() });
      }
    } catch (error) {
      if (number === this.asked && !this.closed) {
        this.back();
        this.said(error instanceof api.Unreachable ? `${error.message}: clicks need it, the brush does not` : error.message + (error.nextStep ? `; ${error.nextStep}` : ""));
      }
    }
    this.busy = false;
    if (this.stale && !this.closed) { this.stale = false; this.ask(); } else this.changed();
  }

  draw(c, unit) {
    const drag = this.drag;
    const rect = drag && !this.brushing ? [...drag.from, ...drag.to] : this.box;
    if (rect) {
      for (const [style, width] of [["rgb(0 0 0 / .6)", 3.5], ["#fff", 1.5]]) {
        c.strokeStyle = style;
        c.lineWidth = width * unit;
        c.setLineDash(style === "#fff" ? [6 * unit, 4 * unit] : []);
        c.strokeRect(rect[0], rect[1], rect[2] - rect[0], rect[3] - rect[1]);
      }
      c.setLineDash([]);
    }
    for (const [x, y, inside] of this.points) {
      const r = 7 * unit, [cx, cy] = [x + 0.5, y + 0.5];
      c.beginPath();
      c.arc(cx, cy, r, 0, 2 * Math.PI);
      c.fillStyle = inside ? "#1f9d55" : "#d5382f";
      c.fill();
      c.lineWidth = 2 * unit;
      c.strokeStyle = "#fff";
      c.stroke();
      c.beginPath();
      c.moveTo(cx - r / 2, cy);
      c.lineTo(cx + r / 2, cy);
      if (inside) { c.moveTo(cx, cy - r / 2); c.lineTo(cx, cy + r / 2); }
      c.stroke();
    }
    if (this.brushing && this.at) {
      for (const [style, width] of [["rgb(0 0 0 / .6)", 3], ["#fff", 1.5]]) {
        c.beginPath();
        c.arc(this.at[0], this.at[1], this.radius, 0, 2 * Math.PI);
        c.strokeStyle = style;
        c.lineWidth = width * unit;
        c.stroke();
      }
    }
  }

  // What goes into the answer beside the mask.
  prompts() {
    return { points: this.points, box: this.box, strokes: this.strokes };
  }

  close() {
    this.closed = true;
    this.stage.tool = null;
    delete this.stage.canvas.dataset.tool;
  }

  get bounds() {
    return bounds(this.rle);
  }
}

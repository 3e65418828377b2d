// The big picture: a frame with its mask on a canvas, zoomed and moved with wheel, fingers or keys.

const MOST = 24; // screen pixels per pixel of the video

export class Stage {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.size = { w: 1, h: 1 };
    this.shown = { picture: null, tint: null, path: null, colour: "#888888" };
    this.style = { mask: true, fill: true };
    this.view = { scale: 1, x: 0, y: 0 }; // screen = video * scale + (x, y), in CSS pixels
    this.fitted = true;
    this.tool = null; // who gets the pointer instead of moving the picture: {down, move, up, hover, draw, cursor}
    this.pointers = new Map();
    this.onzoom = () => {};
    new ResizeObserver(() => this.resized()).observe(canvas.parentElement);
    this.listen();
    this.resized();
  }

  resized() {
    const box = this.canvas.parentElement.getBoundingClientRect(), dpr = window.devicePixelRatio || 1;
    this.box = { w: box.width, h: box.height };
    this.canvas.width = Math.round(box.width * dpr);
    this.canvas.height = Math.round(box.height * dpr);
    this.dpr = dpr;
    if (this.fitted) this.fit();
    this.paint(); // at once: a resized canvas is blank
  }

  // A new video size; keeps the view where it is the same.
  resize(w, h) {
    this.size = { w, h };
    this.fitted = true;
    this.resized();
  }

  get least() {
    return Math.min(this.box.w / this.size.w, this.box.h / this.size.h) || 1;
  }

  fit() {
    this.fitted = true;
    this.look(this.least, this.size.w / 2, this.size.h / 2);
  }

  // Looks at a box of the video with room around it.
  closer([x0, y0, x1, y1]) {
    const room = 2.2, scale = Math.min(this.box.w / ((x1 - x0) * room), this.box.h / ((y1 - y0) * room), 8);
    this.fitted = false;
    this.look(Math.max(this.least, scale), (x0 + x1) / 2, (y0 + y1) / 2);
  }

  look(scale, x, y) {
    this.view.scale = Math.min(MOST, Math.max(this.least * 0.6, scale));
    this.view.x = this.box.w / 2 - x * this.view.scale;
    this.view.y = this.box.h / 2 - y * this.view.scale;
    this.inside();
    this.changed();
  }

  // Zooms about a place of the screen, the middle without one.
  zoom(factor, at = [this.box.w / 2, this.box.h / 2]) {
    const [x, y] = this.toVideo(at);
    this.view.scale = Math.min(MOST, Math.max(this.least * 0.6, this.view.scale * factor));
    this.view.x = at[0] - x * this.view.scale;
    this.view.y = at[1] - y * this.view.scale;
    this.fitted = Math.abs(this.view.scale / this.least - 1) < 0.01;
    this.inside();
    this.changed();
  }

  move(dx, dy) {
    this.view.x += dx;
    this.view.y += dy;
    this.fitted = false;
    this.inside();
    this.draw();
  }

  // A picture smaller than the screen is centred, a larger one leaves no gap.
  inside() {
    for (const [axis, side] of [["x", "w"], ["y", "h"]]) {
      const wide = this.size[side] * this.view.scale, room = this.box[side] - wide;
      this.view[axis] = room >= 0 ? room / 2 : Math.min(0, Math.max(room, this.view[axis]));
    }
  }

  changed() {
    this.onzoom(this.view.scale / this.least, this.fitted);
    this.draw();
  }

  toVideo([x, y]) {
    return [(x - this.view.x) / this.view.scale, (y - this.view.y) / this.view.scale];
  }

  show(shown) {
    Object.assign(this.shown, shown);
    this.draw();
  }

  draw() {
    this.pending ??= requestAnimationFrame(() => this.paint());
  }

  paint() {
    cancelAnimationFrame(this.pending);
    this.pending = null;
    const { context: c, view, size, dpr } = this, { picture, tint, path, colour } = this.shown;
    c.setTransform(dpr, 0, 0, dpr, 0, 0);
    c.clearRect(0, 0, this.box.w, this.box.h);
    c.translate(view.x, view.y);
    c.scale(view.scale, view.scale);
    if (picture) {
      c.imageSmoothingEnabled = view.scale * (size.w / picture.width) < 6;
      c.imageSmoothingQuality = "high";
      c.drawImage(picture, 0, 0, size.w, size.h);
    } else this.blank();
    if (this.style.mask && tint) {
      if (this.style.fill) {
        c.globalAlpha = 0.42;
        c.imageSmoothingEnabled = false;
        c.drawImage(tint, 0, 0, size.w, size.h);
        c.globalAlpha = 1;
      }
      if (path) this.line(path, colour);
    }
    this.tool?.draw?.(c, 1 / view.scale);
  }

  line(path, colour, width = 2) {
    const c = this.context, unit = 1 / this.view.scale;
    c.lineCap = c.lineJoin = "round";
    c.strokeStyle = "rgb(0 0 0 / .55)";
    c.lineWidth = (width + 2) * unit;
    c.stroke(path);
    c.strokeStyle = colour;
    c.lineWidth = width * unit;
    c.stroke(path);
  }

  blank() {
    const c = this.context, { w, h } = this.size, step = Math.max(w, h) / 24;
    c.fillStyle = "#8d8d8d";
    c.fillRect(0, 0, w, h);
    c.fillStyle = "#858585";
    for (let y = 0, row = 0; y < h; y += step, row++)
      for (let x = (row % 2) * step; x < w; x += 2 * step) c.fillRect(x, y, Math.min(step, w - x), Math.min(step, h - y));
  }

  place(event) {
    const box = this.canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  listen() {
    const { canvas, pointers } = this;
    let gesture = null; // two fingers: what they were at
    const spread = () => {
      const [a, b] = [...pointers.values()];
      return { middle: [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2], apart: Math.hypot(a[0] - b[0], a[1] - b[1]) || 1 };
    };
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0016)), this.place(event));
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("pointerdown", (event) => {
      pointers.set(event.pointerId, this.place(event));
      canvas.setPointerCapture(event.pointerId);
      if (pointers.size === 2) {
        this.tool?.cancel?.();
        gesture = spread();
      } else if (this.tool && event.button !== 1 && !this.panning) this.tool.down(this.toVideo(this.place(event)), event);
    });
    canvas.addEventListener("pointermove", (event) => {
      const at = this.place(event), before = pointers.get(event.pointerId);
      if (!before) return this.tool?.hover?.(this.toVideo(at), event);
      pointers.set(event.pointerId, at);
      if (pointers.size === 2 && gesture) {
        const now = spread();
        this.move(now.middle[0] - gesture.middle[0], now.middle[1] - gesture.middle[1]);
        this.zoom(now.apart / gesture.apart, now.middle);
        gesture = now;
      } else if (this.tool && !(event.buttons & 4) && !this.panning) {
        if (!gesture) this.tool.move(this.toVideo(at), event);
      } else this.move(at[0] - before[0], at[1] - before[1]);
    });
    const up = (event) => {
      if (!pointers.delete(event.pointerId)) return;
      if (!gesture && this.tool && !this.panning && event.button !== 1) {
        if (event.type === "pointerup") this.tool.up(this.toVideo(this.place(event)), event);
        else this.tool.cancel?.();
      }
      if (!pointers.size) gesture = null;
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("pointerleave", () => this.tool?.leave?.());
  }
}

// The frames of a stretch as thumbnails, and the short loop of it.

import { byId, element } from "./dom.js";

const HIGH = 54; // pixels of a thumbnail

export class Strip {
  // show(frame_index, playing) puts a frame on the stage.
  constructor(show) {
    this.root = byId("frames");
    this.show = show;
    this.timer = null;
    this.root.addEventListener("click", (event) => {
      const button = event.target.closest("button");
      if (button) { this.stop(); this.show(Number(button.dataset.frame)); }
    });
  }

  open(load) {
    this.stop();
    this.load = load;
    this.buttons = new Map();
    this.root.replaceChildren();
    this.drawn = new Set();
    load.listeners.add(() => { if (this.load === load) this.refresh(); });
    this.refresh();
  }

  // Adds what has come in the meantime.
  refresh() {
    const { load } = this, frames = load.strip?.frames;
    const sole = !load.strip ? [] : load.strip.video ? frames : [];
    byId("strip").classList.toggle("none", Boolean(load.strip) && sole.length < 2);
    if (!this.buttons.size) for (const frame of sole) this.add(frame);
    if (!load.strip && !this.root.children.length) for (let i = 0; i < 8; i++) element(this.root, "span", { class: "ghost" });
    for (const frame of sole) this.draw(frame.frame_index);
    byId("strip").classList.toggle("single", this.playable().length < 2);
  }

  add(frame) {
    if (!this.buttons.size) this.root.replaceChildren();
    const { item } = this.load, asked = frame.frame_index === item.frame_index;
    const button = element(this.root, "button", {
      type: "button", role: "option", tabindex: "-1", "data-frame": frame.frame_index, "aria-selected": "false",
      class: [frame.in_stretch ? "in" : "out", asked && "asked"].filter(Boolean).join(" "),
      title: `frame ${frame.frame_index}${asked ? ", asked about" : frame.in_stretch ? "" : ", outside of the stretch"}`,
      "aria-label": `frame ${frame.frame_index}`,
    });
    const canvas = element(button, "canvas", { width: Math.round((HIGH * 2 * item.width) / item.height), height: HIGH * 2 });
    canvas.style.aspectRatio = `${item.width} / ${item.height}`;
    element(button, "span", {}, String(frame.frame_index));
    this.buttons.set(frame.frame_index, button);
    if (this.at === frame.frame_index) this.mark(this.at);
  }

  draw(frame_index) {
    const picture = this.load.small.get(frame_index);
    if (!picture || this.drawn.has(frame_index)) return;
    this.drawn.add(frame_index);
    const canvas = this.buttons.get(frame_index).firstChild, c = canvas.getContext("2d");
    c.imageSmoothingQuality = "high";
    c.drawImage(picture, 0, 0, canvas.width, canvas.height);
    const shape = this.load.shapes.get(frame_index);
    if (shape?.small) {
      c.globalAlpha = 0.6;
      c.drawImage(shape.small, 0, 0, canvas.width, canvas.height);
      c.globalAlpha = 1;
    }
  }

  mark(frame_index) {
    this.at = frame_index;
    for (const [frame, button] of this.buttons ?? []) button.setAttribute("aria-selected", String(frame === frame_index));
    const button = this.buttons?.get(frame_index);
    if (!button) return;
    const box = this.root, left = button.offsetLeft - box.offsetLeft;
    if (left < box.scrollLeft || left + button.offsetWidth > box.scrollLeft + box.clientWidth)
      box.scrollLeft = left - (box.clientWidth - button.offsetWidth) / 2;
  }

  // The frame `step` places on, or null at either end.
  beside(frame_index, step) {
    const frames = this.load?.strip?.video ? this.load.strip.frames : [];
    const at = frames.findIndex((frame) => frame.frame_index === frame_index);
    return at < 0 ? null : (frames[at + step]?.frame_index ?? null);
  }

  playable() {
    if (!this.load.strip?.video) return [];
    return this.load.strip.frames.filter((frame) => frame.in_stretch && !this.load.missing.has(frame.frame_index));
  }

  get playing() {
    return this.timer !== null;
  }

  play() {
    const frames = this.playable().map((frame) => frame.frame_index);
    if (frames.length < 2) return false;
    const gap = (frames.at(-1) - frames[0]) / (frames.length - 1);
    const pause = Math.min(240, Math.max(70, (1000 * gap) / (this.load.item.fps || 10))); // about as it happened
    let at = Math.max(0, frames.indexOf(this.at));
    const step = () => {
      const next = (at + 1) % frames.length;
      if (this.load.picture(frames[next])) { at = next; this.show(frames[at], true); }
      this.timer = setTimeout(step, next === frames.length - 1 ? pause + 350 : pause); // a breath before it starts over
    };
    this.timer = setTimeout(step, pause);
    return true;
  }

  stop() {
    clearTimeout(this.timer);
    this.timer = null;
  }
}

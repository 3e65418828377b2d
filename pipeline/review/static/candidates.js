// The model's three masks of the asked frame side by side, each closer at the object.

import { byId, element } from "./dom.js";
import { bounds, union } from "./rle.js";

export function open(load, pick) {
  const root = byId("candidates"), { candidates } = load.candidates, { item } = load;
  root.replaceChildren();
  root.hidden = false;
  const title = element(root, "h2", {}, "Which one is right?");
  const way = element(title, "span", {}, "back to the whole frame ");
  element(way, "kbd", {}, "C");
  const box = framed(union(bounds(item.shown_mask), ...candidates.map((one) => one.box)) ?? [0, 0, item.width, item.height], item);
  candidates.forEach((one, i) => {
    const card = element(root, "button", { type: "button", class: one.shown ? "card shown" : "card", "data-candidate": i });
    card.addEventListener("click", () => pick(i));
    const canvas = element(card, "canvas");
    draw(canvas, load, one, box);
    const line = element(card, "span", { class: "line" });
    element(line, "kbd", {}, String(i + 1));
    element(line, "b", {}, !one.box ? "nothing here" : one.score === null ? "no score" : `score ${one.score.toFixed(2)}`);
    if (one.shown) element(line, "em", {}, "shown now");
  });
}

export function close() {
  const root = byId("candidates");
  root.hidden = true;
  root.replaceChildren();
}

// A window of 4:3 that holds the box with room around it, inside of the picture.
function framed([x0, y0, x1, y1], { width, height }) {
  let w = Math.max((x1 - x0) * 1.6, 48), h = Math.max((y1 - y0) * 1.6, 36);
  if (w / h < 4 / 3) w = (h * 4) / 3; else h = (w * 3) / 4;
  const shrink = Math.min(1, width / w, height / h);
  w *= shrink;
  h *= shrink;
  const place = (middle, side, most) => Math.min(most - side, Math.max(0, middle - side / 2));
  return { x: place((x0 + x1) / 2, w, width), y: place((y0 + y1) / 2, h, height), w, h };
}

function draw(canvas, load, one, box) {
  const picture = load.picture(load.item.frame_index), scale = 720 / box.w;
  canvas.width = 720;
  canvas.height = Math.round(box.h * scale);
  const c = canvas.getContext("2d");
  c.setTransform(scale, 0, 0, scale, -box.x * scale, -box.y * scale);
  if (picture) c.drawImage(picture, 0, 0, load.item.width, load.item.height);
  else { c.fillStyle = "#8d8d8d"; c.fillRect(0, 0, load.item.width, load.item.height); }
  c.imageSmoothingEnabled = false;
  c.globalAlpha = 0.42;
  c.drawImage(one.tint, 0, 0);
  c.globalAlpha = 1;
  for (const [style, width] of [["rgb(0 0 0 / .55)", 6], [load.item.colour, 3]]) {
    c.strokeStyle = style;
    c.lineWidth = width / scale;
    c.lineCap = "round";
    c.stroke(one.path);
  }
}

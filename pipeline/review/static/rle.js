// Masks: COCO run lengths (column by column, background first) to pixels and back, and what is drawn of them.

// A mask is {h, w, data}, data row by row, 0 or 1.
export function decode(rle) {
  const [h, w] = rle.size, data = new Uint8Array(h * w);
  eachRun(rle, (x, from, to) => {
    for (let y = from, at = from * w + x; y < to; y++, at += w) data[at] = 1;
  });
  return { h, w, data };
}

export function encode({ h, w, data }) {
  const counts = [];
  let value = 0, run = 0;
  for (let x = 0; x < w; x++) {
    for (let y = 0, at = x; y < h; y++, at += w) {
      if (data[at] === value) run++;
      else { counts.push(run); value = data[at]; run = 1; }
    }
  }
  counts.push(run);
  return { size: [h, w], counts };
}

export const empty = (h, w) => ({ size: [h, w], counts: [h * w] });

export function area(rle) {
  if (!rle) return 0;
  let sum = 0;
  for (let i = 1; i < rle.counts.length; i += 2) sum += rle.counts[i];
  return sum;
}

// Intersection over union of two masks of one size; two empty ones are the same.
export function iou(one, other) {
  if (!one || !other) return 0;
  const a = decode(one).data, b = decode(other).data;
  let both = 0, either = 0;
  for (let i = 0; i < a.length; i++) { both += a[i] & b[i]; either += a[i] | b[i]; }
  return either ? both / either : 1;
}

// Calls tell(x, from, to) for every foreground piece of a column, left to right.
function eachRun({ size: [h], counts }, tell) {
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const end = at + counts[i];
    if (i % 2) for (let from = at; from < end;) {
      const x = Math.floor(from / h), to = Math.min(end, (x + 1) * h);
      tell(x, from - x * h, to - x * h);
      from = to;
    }
    at = end;
  }
}

// [x0, y0, x1, y1] with the right and lower edge exclusive, or null where nothing is.
export function bounds(rle) {
  let x0 = Infinity, y0 = Infinity, x1 = -1, y1 = -1;
  if (rle) eachRun(rle, (x, from, to) => {
    if (x < x0) x0 = x;
    if (x >= x1) x1 = x + 1;
    if (from < y0) y0 = from;
    if (to > y1) y1 = to;
  });
  return x1 < 0 ? null : [x0, y0, x1, y1];
}

export function union(...boxes) {
  const there = boxes.filter(Boolean);
  if (!there.length) return null;
  const at = (i, pick) => pick(...there.map((box) => box[i]));
  return [at(0, Math.min), at(1, Math.min), at(2, Math.max), at(3, Math.max)];
}

function parsed(colour) {
  return [1, 3, 5].map((i) => parseInt(colour.slice(i, i + 2), 16));
}

// The mask as a picture at `scale` of its size: the colour inside, nothing outside.
export function tint(rle, colour, scale = 1) {
  const [h, w] = rle.size, tw = Math.max(1, Math.round(w * scale)), th = Math.max(1, Math.round(h * scale));
  const picture = new ImageData(tw, th), pixels = new Uint32Array(picture.data.buffer);
  const [r, g, b] = parsed(colour), word = (255 << 24) | (b << 16) | (g << 8) | r; // little-endian RGBA
  eachRun(rle, (x, from, to) => {
    for (let tx = Math.ceil((x / w) * tw - 0.5); tx < tw && Math.floor(((tx + 0.5) / tw) * w) === x; tx++) {
      if (tx < 0) continue;
      const end = Math.min(th, Math.ceil((to / h) * th - 0.5));
      for (let ty = Math.max(0, Math.ceil((from / h) * th - 0.5)); ty < end; ty++) pixels[ty * tw + tx] = word;
    }
  });
  const canvas = document.createElement("canvas");
  canvas.width = tw;
  canvas.height = th;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

// The border between inside and outside as lines along pixel edges: sharp at every zoom.
export function outline(rle) {
  const { h, w, data } = decode(rle), box = bounds(rle), path = new Path2D();
  if (!box) return path;
  const [x0, y0, x1, y1] = box, at = (x, y) => (x < 0 || y < 0 || x >= w || y >= h ? 0 : data[y * w + x]);
  for (let y = y0; y <= y1; y++) {
    for (let x = x0, from = -1; x <= x1; x++) {
      const edge = x < x1 && at(x, y) !== at(x, y - 1);
      if (edge && from < 0) from = x;
      if (!edge && from >= 0) { path.moveTo(from, y); path.lineTo(x, y); from = -1; }
    }
  }
  for (let x = x0; x <= x1; x++) {
    for (let y = y0, from = -1; y <= y1; y++) {
      const edge = y < y1 && at(x, y) !== at(x - 1, y);
      if (edge && from < 0) from = y;
      if (!edge && from >= 0) { path.moveTo(x, from); path.lineTo(x, y); from = -1; }
    }
  }
  return path;
}

// Paints (or rubs out) a round stroke from a to b, both [x, y].
export function stroke({ h, w, data }, a, b, radius, value) {
  const [dx, dy] = [b[0] - a[0], b[1] - a[1]], length2 = dx * dx + dy * dy || 1, r2 = radius * radius;
  const left = Math.max(0, Math.floor(Math.min(a[0], b[0]) - radius)), right = Math.min(w - 1, Math.ceil(Math.max(a[0], b[0]) + radius));
  const top = Math.max(0, Math.floor(Math.min(a[1], b[1]) - radius)), bottom = Math.min(h - 1, Math.ceil(Math.max(a[1], b[1]) + radius));
  for (let y = top; y <= bottom; y++) {
    for (let x = left; x <= right; x++) {
      const px = x + 0.5 - a[0], py = y + 0.5 - a[1];
      const t = Math.min(1, Math.max(0, (px * dx + py * dy) / length2));
      if ((px - t * dx) ** 2 + (py - t * dy) ** 2 <= r2) data[y * w + x] = value;
    }
  }
}

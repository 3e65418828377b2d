// The item on screen and those that come next: claimed ahead, their pictures decoded, their leases kept alive.

import * as api from "./api.js";
import { bounds, iou, outline, tint } from "./rle.js";

export const SMALL = 480; // width of the pictures of the strip and the loop
const AHEAD = 3;
const SAME = 0.98; // IoU from which a candidate is the mask that is shown

// One leased item with everything that is drawn of it.
export class Load {
  constructor(lease, width) {
    this.item = lease.item;
    this.width = Math.min(width, this.item.width);
    this.lease(lease);
    this.strip = null;
    this.shapes = new Map(); // by frame: {rle, tint, path, box}
    this.small = new Map(); // by frame: pictures
    this.full = new Map();
    this.candidates = null;
    this.missing = new Set(); // frames without a picture
    this.failure = null;
    this.listeners = new Set();
    this.shown = this.shape(this.item.frame_index, this.item.shown_mask);
    this.first = this.fetchFirst(); // the asked frame can be drawn
    this.rest = this.first.then(() => this.fetchRest()).catch(() => {});
  }

  lease({ lease_id, seconds_left }) {
    this.lease_id = lease_id;
    this.until = Date.now() + 1000 * seconds_left;
    this.lost = false;
  }

  shape(frame_index, rle) {
    const made = { rle, box: bounds(rle), scale: Math.min(1, SMALL / this.item.width) };
    if (rle) made.small = tint(rle, this.item.colour, made.scale);
    this.shapes.set(frame_index, made);
    return made;
  }

  // The full mask of one frame, made when it is first drawn.
  whole(frame_index) {
    const shape = this.shapes.get(frame_index);
    if (shape?.rle && !shape.path) {
      shape.tint = tint(shape.rle, this.item.colour);
      shape.path = outline(shape.rle);
    }
    return shape;
  }

  async fetchFirst() {
    await this.sharp(this.item.frame_index);
    this.whole(this.item.frame_index);
    if (this.item.ask_candidates) await this.fetchCandidates().catch(() => {});
  }

  async fetchRest() {
    try {
      this.strip = await api.strip(this.item.item_id);
    } catch (error) {
      this.failure = error;
      this.tell();
      return;
    }
    for (const frame of this.strip.frames) {
      this.shape(frame.frame_index, frame.mask);
      await new Promise((resolve) => setTimeout(resolve)); // never a long task while somebody works
    }
    this.whole(this.item.frame_index);
    this.tell();
    if (!this.strip.video) return;
    const near = [...this.strip.frames].sort((a, b) => Math.abs(a.frame_index - this.item.frame_index) - Math.abs(b.frame_index - this.item.frame_index));
    const queue = near.map((frame) => frame.frame_index);
    const worker = async () => {
      for (let frame = queue.shift(); frame !== undefined && !this.closed; frame = queue.shift()) await this.blurred(frame);
    };
    await Promise.all([worker(), worker()]);
  }

  async blurred(frame_index) {
    if (this.small.has(frame_index)) return;
    try {
      this.keep(this.small, frame_index, await api.picture(this.item.item_id, frame_index, Math.min(SMALL, this.item.width)));
    } catch { this.missing.add(frame_index); }
    this.tell();
  }

  keep(pictures, frame_index, picture) {
    if (this.closed) picture.close();
    else pictures.set(frame_index, picture);
  }

  async sharp(frame_index) {
    if (this.full.has(frame_index) || this.missing.has(frame_index)) return;
    try {
      this.keep(this.full, frame_index, await api.picture(this.item.item_id, frame_index, this.width));
    } catch (error) {
      if (!(error instanceof api.Unreachable)) this.missing.add(frame_index);
    }
    this.tell();
  }

  async fetchCandidates() {
    if (this.candidates) return this.candidates;
    const found = await api.candidates(this.item.item_id);
    for (const one of found.candidates) {
      one.tint = tint(one.mask, this.item.colour);
      one.path = outline(one.mask);
      one.box = bounds(one.mask);
      one.shown = iou(one.mask, this.item.shown_mask) >= SAME; // only then is picking it the same as accepting
    }
    this.candidates = found;
    return found;
  }

  picture(frame_index) {
    return this.full.get(frame_index) || this.small.get(frame_index) || null;
  }

  tell() {
    for (const listener of this.listeners) listener(this);
  }

  close() {
    this.closed = true;
    this.listeners.clear();
    for (const picture of [...this.full.values(), ...this.small.values()]) picture.close();
    this.full.clear();
    this.small.clear();
  }
}

export class Lane {
  constructor(filter, width) {
    this.filter = filter;
    this.width = width;
    this.next = [];
    this.held = new Set(); // ids of items that are on screen or were answered by an answer on its way
    this.filling = null;
    this.waiting = null;
  }

  // Claims until enough wait here. Raises what the server said only where nothing waits here.
  fill(current) {
    this.filling ??= this.claimMore(current).finally(() => { this.filling = null; });
    return this.filling;
  }

  async claimMore(current) {
    const want = AHEAD - this.next.length - (current ? 1 : 0);
    if (want <= 0) return;
    const found = await api.claim({ count: want, ...this.filter });
    this.waiting = found.waiting;
    for (const lease of found.leases) this.next.push(new Load(lease, this.width()));
  }

  shift() {
    return this.next.shift() ?? null;
  }

  unshift(load) {
    this.next.unshift(load);
  }

  // Gives back all that nobody saw.
  empty() {
    for (const load of this.next.splice(0)) {
      api.release(load.item.item_id, load.lease_id).catch(() => {});
      load.close();
    }
  }

  // Keeps leases alive that are past half of their time.
  async renew(loads, lease_seconds) {
    for (const load of loads) {
      if (load.lost || load.until - Date.now() > 500 * lease_seconds) continue;
      try {
        const { seconds_left } = await api.renew(load.item.item_id, load.lease_id);
        load.until = Date.now() + 1000 * seconds_left;
      } catch (error) {
        if (error instanceof api.Refused && ["lease_lost", "conflict", "not_found"].includes(error.kind)) load.lost = error.kind;
      }
    }
    this.next = this.next.filter((load) => !load.lost);
  }
}

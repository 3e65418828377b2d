// Keeps the leases alive while somebody works, and says so when the item on screen went back to the queue.

import * as api from "./api.js";

const EVERY = 5000; // milliseconds

export class Keeper {
  constructor(work) {
    this.work = work;
    this.touched = Date.now();
    this.timer = setInterval(() => this.tick(), EVERY);
    this.onhide = () => this.leave();
    window.addEventListener("pagehide", this.onhide);
  }

  close() {
    clearInterval(this.timer);
    window.removeEventListener("pagehide", this.onhide);
  }

  // Gives back what nobody will answer here.
  leave() {
    const { current, lane } = this.work;
    for (const load of [current, ...lane.next]) if (load) api.release(load.item.item_id, load.lease_id).catch(() => {});
  }

  async tick() {
    const { work } = this, load = work.current, { lease_seconds } = work.settings;
    work.expire();
    if (!load || work.away || load.lost) return;
    const idle = Date.now() - this.touched > 2000 * lease_seconds;
    if (!idle) await work.lane.renew([load, ...work.lane.next], lease_seconds);
    else if (load.until < Date.now()) { load.lost = "idle"; work.lane.empty(); }
    if (load.lost && load === work.current) this.lose(load);
  }

  async lose(load) {
    const { work } = this, idle = load.lost === "idle";
    if (!idle && (await this.regain(load))) return;
    if (load !== work.current) return;
    work.endFix();
    work.strip.stop();
    const text = idle ? "Nothing happened here for a while, so this item went back to the queue." : "Somebody else has this item now.";
    work.cover(text, { text: "Go on (Enter)", act: async () => {
      this.touched = Date.now();
      if (idle && (await this.regain(load))) return work.goOn();
      load.close();
      work.advance();
    } });
  }

  // Claims an item by its id whose lease ran out. Returns: whether it may be answered here.
  async regain(load) {
    try {
      const { leases } = await api.claim({ count: 1, item_id: load.item.item_id });
      if (leases.length) load.lease(leases[0]);
      return leases.length > 0;
    } catch (error) {
      if (!(error instanceof api.Unreachable)) return false;
      load.lost = false; // found out once the server is back
      return true;
    }
  }
}

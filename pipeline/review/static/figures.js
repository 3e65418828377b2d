// Progress, pace and the promise so far: the line at the top, and the dialog with all of it.

import * as api from "./api.js";
import { byId, count, counted, element, median, percent, seconds } from "./dom.js";

const LOOK_AGAIN = 20; // seconds
const PROMISE_EVERY = 10; // answers: a figure that moved right after one of them would tell that it had been an audit

export class Figures {
  constructor() {
    this.stats = null;
    this.promise = null;
    this.times = []; // seconds of the last answers here
    this.here = 0; // answers since the promise was looked at
    this.since = 0; // answers since the counts were looked at
    this.looked = 0;
  }

  async look(now = false) {
    if (!now && Date.now() - this.looked < 1000 * LOOK_AGAIN) return this.show();
    this.looked = Date.now();
    try {
      const stats = await api.stats();
      this.stats = stats;
      this.since = 0;
      if (!this.promise || this.here >= PROMISE_EVERY) { this.promise = stats.promise; this.here = 0; }
    } catch { /* the old figures stay */ }
    this.show();
  }

  answered(spent, step = 1) {
    this.since += step;
    this.here = Math.max(0, this.here + step);
    if (spent !== null) this.times = [...this.times.slice(-49), spent];
    this.look();
  }

  show() {
    const { stats } = this;
    if (!stats) return;
    const today = stats.answered.today + this.since, waiting = Math.max(0, stats.waiting.total - this.since);
    const share = today + waiting ? today / (today + waiting) : 1;
    byId("meter").setAttribute("aria-valuenow", String(Math.round(100 * share)));
    byId("meter").firstElementChild.style.width = `${100 * share}%`;
    byId("progress-said").textContent = `${count(today)} today · ${count(waiting)} waiting`;
    const pace = median(this.times) ?? stats.seconds?.all?.median ?? null;
    byId("pace").textContent = pace === null ? "" : `${seconds(pace)} an item`;
    byId("promise").textContent = this.promise?.judged ? `errors ${percent(this.promise.error_rate)} (${percent(this.promise.low)}–${percent(this.promise.high)})` : "";
    byId("promise").hidden = !this.promise?.judged;
  }

  // The dialog; filter is {drop, label}, choose(filter) another one.
  open(filter, choose) {
    const root = byId("queue-body"), { stats, promise } = this;
    root.replaceChildren();
    if (!stats) return element(root, "p", { class: "faint" }, "No figures yet: the server did not answer.");
    const tiles = element(root, "div", { class: "tiles" });
    for (const [value, text] of [
      [count(stats.waiting.total), "waiting"],
      [count(stats.answered.today), `answered today, ${count(stats.answered.mine_today ?? 0)} by you`],
      [seconds(stats.seconds?.all?.median), "median time of an answer"],
      [stats.budget_left === null || stats.budget_left === undefined ? "no limit" : count(stats.budget_left), "left of today's budget"],
    ]) {
      const tile = element(tiles, "div");
      element(tile, "b", {}, value);
      element(tile, "span", {}, text);
    }
    this.promised(root, promise);
    const columns = element(root, "div", { class: "columns" });
    for (const [name, kind] of [["Drop", "drop"], ["Label", "label"]]) {
      const rows = Object.entries(stats.waiting[`${kind}s`] ?? {});
      const part = element(columns, "section");
      element(part, "h3", {}, `Waiting by ${name.toLowerCase()}`);
      const chosen = filter[kind] ?? null;
      bars(part, rows, (key) => choose({ ...filter, [kind]: chosen === key ? undefined : key }), chosen);
    }
    const why = element(columns, "section");
    element(why, "h3", {}, "Waiting because of");
    bars(why, Object.entries(stats.waiting.reasons ?? {}));
    const said = element(columns, "section");
    element(said, "h3", {}, "Answers");
    const verdicts = Object.entries(stats.answered.verdicts ?? {}).map(([verdict, n]) => {
      const time = stats.seconds?.verdicts?.[verdict]?.median;
      return [time === undefined || time === null ? verdict : `${verdict}, ${seconds(time)}`, n];
    });
    bars(said, verdicts);
    const people = element(columns, "section");
    element(people, "h3", {}, "People");
    bars(people, Object.entries(stats.answered.reviewers ?? {}));
  }

  promised(root, promise) {
    const part = element(root, "section", { class: "promised" });
    element(part, "h3", {}, "The promise so far");
    if (!promise?.judged) return element(part, "p", { class: "faint" }, promise?.words || "No accepted mask was looked at yet.");
    const top = Math.max(0.1, Math.ceil(promise.high * 10) / 10), scale = element(part, "div", { class: "scale", "aria-hidden": "true" });
    const at = (x) => `${(100 * x) / top}%`, band = element(scale, "i", { class: "band" }), dot = element(scale, "i", { class: "dot" });
    band.style.left = at(promise.low);
    band.style.right = `${100 - (100 * promise.high) / top}%`;
    dot.style.left = at(promise.error_rate);
    const ends = element(part, "div", { class: "ends" });
    element(ends, "span", {}, "0%");
    element(ends, "span", {}, percent(top));
    element(part, "p", {}, promise.words || `${counted(promise.judged, "accepted mask")} looked at, ${count(promise.bad)} wrong`);
  }
}

function bars(parent, rows, pick = null, chosen = null) {
  const sorted = rows.sort((a, b) => b[1] - a[1]).slice(0, 8), top = Math.max(1, ...sorted.map(([, n]) => n));
  if (!sorted.length) element(parent, "p", { class: "faint small" }, "nothing");
  for (const [name, n] of sorted) {
    const row = element(parent, pick ? "button" : "div", { class: "row", type: pick ? "button" : null, "aria-pressed": pick ? String(chosen === name) : null, title: pick ? `only ${name}` : null });
    element(row, "span", { class: "name" }, name || "without a name");
    const meter = element(row, "span", { class: "meter", "aria-hidden": "true" });
    element(meter, "i").style.width = `${(100 * n) / top}%`;
    element(row, "span", { class: "n" }, count(n));
    if (pick) row.addEventListener("click", () => pick(name));
  }
}

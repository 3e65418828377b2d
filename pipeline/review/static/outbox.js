// Keeps every answer in the browser until the server has it: sent again after a lost connection, a reload or a new login.

import * as api from "./api.js";

const KEY = "masksieve.answer.";
const WAITS = [1, 2, 4, 8, 10]; // seconds between tries

export class Outbox {
  // tell: {sent(entry, reply), dropped(entry, why), waiting(count)}
  constructor(reviewer, tell) {
    this.prefix = `${KEY}${reviewer}.`;
    this.tell = tell;
    this.entries = this.stored();
    this.sending = null;
    this.tries = 0;
    this.wake = null;
    this.closed = false;
    this.kick();
  }

  stored() {
    const found = [];
    try {
      for (let i = 0; i < localStorage.length; i++) {
        const key = localStorage.key(i);
        if (key.startsWith(this.prefix)) found.push(JSON.parse(localStorage.getItem(key)));
      }
    } catch { /* no storage, or nothing readable: answers live as long as the page */ }
    return found.sort((a, b) => a.at - b.at);
  }

  keep(entry) {
    try { localStorage.setItem(this.prefix + entry.body.answer_id, JSON.stringify(entry)); } catch { /* as above */ }
  }

  forget(entry) {
    this.entries = this.entries.filter((one) => one !== entry);
    try { localStorage.removeItem(this.prefix + entry.body.answer_id); } catch { /* as above */ }
    this.tell.waiting(this.entries.length);
  }

  // entry: {item_id, body, at, ...}; at orders them.
  add(entry) {
    this.entries.push(entry);
    this.keep(entry);
    this.tell.waiting(this.entries.length);
    this.kick();
  }

  // Takes back an answer that was not sent. One that is on its way has to arrive first.
  async takeBack(answer_id) {
    const entry = this.entries.find((one) => one.body.answer_id === answer_id);
    if (!entry) return false;
    if (this.sending?.entry === entry) await this.sending.done;
    if (!this.entries.includes(entry)) return false;
    this.forget(entry);
    return true;
  }

  // Sends now, whatever pause it is in.
  kick() {
    this.tries = 0;
    if (this.wake) this.wake();
    else if (!this.running) this.run();
  }

  close() {
    this.closed = true;
    if (this.wake) this.wake();
  }

  async run() {
    this.running = true;
    while (this.entries.length && !this.closed) {
      const entry = this.entries[0];
      this.sending = { entry, done: this.send(entry) };
      const next = await this.sending.done;
      this.sending = null;
      if (next === "go on") this.tries = 0;
      if (next !== "wait") continue;
      const seconds = WAITS[Math.min(this.tries++, WAITS.length - 1)];
      await new Promise((resolve) => { this.wake = resolve; setTimeout(resolve, 1000 * seconds); });
      this.wake = null;
    }
    this.running = false;
  }

  // What comes next: "go on" with the other answers, "again" with this one, or "wait".
  async send(entry) {
    try {
      const reply = await api.answer(entry.item_id, entry.body);
      this.forget(entry);
      this.tell.sent(entry, reply);
      return "go on";
    } catch (error) {
      if (passing(error)) return "wait";
      const next = error.kind === "lease_lost" ? await this.claimAgain(entry) : null;
      if (next) return next;
      this.forget(entry);
      this.tell.dropped(entry, error);
      return "go on";
    }
  }

  // A lease that ran out: the item is asked for by its id. Null once it cannot be had any more.
  async claimAgain(entry) {
    try {
      const { leases } = await api.claim({ count: 1, item_id: entry.item_id });
      if (!leases.length) return null;
      entry.body.lease_id = leases[0].lease_id;
      this.keep(entry);
      return "again";
    } catch (error) {
      if (passing(error)) return "wait";
      if (!["lease_lost", "budget_spent"].includes(error.kind)) return null;
      this.entries.push(this.entries.shift()); // somebody else has it, and may give it back; or it is too much for today
      return "wait";
    }
  }
}

// Whether the same may work later.
function passing(error) {
  return !(error instanceof api.Refused) || error.kind === "login" || error.status >= 500 || error.status === 429;
}

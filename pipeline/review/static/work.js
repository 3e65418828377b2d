// One reviewer at work: the item on screen, answers to it, and the way back.

import * as api from "./api.js";
import * as candidates from "./candidates.js";
import { announce, byId, setPressed, toast } from "./dom.js";
import { Figures } from "./figures.js";
import { Fix } from "./fix.js";
import { Keeper } from "./keeper.js";
import { Lane, Load } from "./lane.js";
import { Outbox } from "./outbox.js";
import * as panel from "./panel.js";
import { encode, decode } from "./rle.js";
import * as screens from "./screens.js";
import { Strip } from "./strip.js";

const LOOK = 10; // seconds between looks into an empty queue
const TOO_SOON = 120; // milliseconds in which a key cannot have been meant for an item that just came
const BACK = 5; // answers that can be taken back with their pictures still here

export class Work {
  constructor(stage, settings, filter) {
    this.stage = stage;
    this.settings = settings;
    this.lane = new Lane(filter, () => Math.ceil((innerWidth * devicePixelRatio) / 320) * 320);
    this.figures = new Figures();
    this.strip = new Strip((frame, playing) => this.go(frame, playing));
    this.current = null;
    this.fix = null;
    this.scope = "stretch";
    this.done = [];
    this.outbox = new Outbox(settings.reviewer, {
      sent: (entry) => { const one = this.done.find((x) => x.entry === entry); if (one) one.until = Date.now() + 1000 * settings.undo_seconds; },
      dropped: (entry, why) => {
        this.done = this.done.filter((one) => one.entry !== entry);
        this.figures.answered(null, -1);
        panel.last(this.done.at(-1)?.entry);
        const gone = ["conflict", "not_found", "lease_lost"].includes(why.kind);
        toast(gone ? `${entry.said}: not needed any more, the item was settled meanwhile` : `${entry.said} was refused: ${why.message}`, "warn", 12);
      },
      waiting: (count) => this.unsent(count),
    });
    this.unsent(this.outbox.entries.length);
    this.keeper = new Keeper(this);
  }

  close() {
    this.keeper.close();
    clearTimeout(this.later);
    this.closed = true;
    this.strip.stop();
    this.outbox.close();
  }

  unsent(count) {
    byId("unsent").hidden = !count || !this.away;
    byId("unsent").textContent = `${count} kept here`;
  }

  // Whether the server is out of reach, as the last request found it.
  set unreachable(away) {
    this.away = away;
    this.unsent(this.outbox.entries.length);
  }

  // --- what comes next

  async start() {
    this.figures.look(true);
    screens.loading();
    await this.advance();
  }

  // Puts the next item on screen; from: when the answer before it was given.
  async advance(from = null) {
    clearTimeout(this.later);
    this.current = null;
    this.stage.show({ picture: null, tint: null, path: null }); // what was shown may be closed by now
    const ready = this.lane.shift();
    if (ready) {
      this.present(ready, from);
      this.refill();
      return;
    }
    if (document.body.dataset.screen === "work") screens.loading("Getting the next item");
    try {
      await this.lane.fill(null);
    } catch (error) {
      return this.closed || this.stuck(error);
    }
    if (this.closed || this.current) return;
    const load = this.lane.shift();
    if (load) { this.present(load, from); this.refill(); } else this.nothing();
  }

  refill() {
    this.lane.fill(this.current).catch(() => {}); // told once nothing is left to show
  }

  nothing() {
    const said = [this.lane.filter.drop, this.lane.filter.label].filter(Boolean).join(", ");
    this.figures.look(true);
    if (document.body.dataset.screen !== "empty") screens.nothing({ filter: said, every: LOOK }, () => this.filter({}));
    this.again(LOOK);
  }

  stuck(error) {
    const now = () => this.advance();
    if (error.kind === "login") return;
    if (error instanceof api.Unreachable) { screens.offline(this.outbox.entries.length, now); this.again(5); }
    else if (error.kind === "budget_spent") { screens.budget(error, now); this.again(60); }
    else screens.error(error, now);
  }

  again(seconds) {
    this.later = setTimeout(() => { if (!this.current && !this.closed) this.advance(); }, 1000 * seconds);
  }

  present(load, from = null) {
    this.endFix();
    candidates.close();
    this.choosing = false;
    this.current = load;
    this.scope = "stretch";
    this.shownAt = null;
    delete byId("stage").dataset.ready;
    byId("stage").dataset.item = load.item.item_id;
    screens.work();
    const { item } = load;
    panel.show(item);
    panel.scope(this.scope);
    this.cover(null);
    this.stage.resize(item.width, item.height);
    load.listeners.add(() => { if (this.current === load) this.arrived(); });
    this.strip.open(load);
    this.go(item.frame_index);
    byId("canvas").setAttribute("aria-label", `Frame ${item.frame_index} of ${item.video_name} with the mask of ${panel.named(item)}`);
    byId("canvas").focus({ preventScroll: true });
    const seen = () => {
      if (this.current !== load) return;
      this.cover(null);
      this.go(item.frame_index);
      this.stage.paint();
      if (item.ask_candidates && load.candidates?.candidates.some((one) => one.box && !one.shown)) this.choose();
      this.shownAt = performance.now();
      this.hidden = 0;
      requestAnimationFrame(() => setTimeout(() => {
        if (from !== null) performance.measure("next item", { start: from, end: performance.now() });
        setTimeout(() => { if (this.current === load) byId("stage").dataset.ready = "yes"; }, TOO_SOON);
      }));
    };
    if (load.picture(item.frame_index) || load.missing.has(item.frame_index)) return seen();
    this.cover("Getting the frame");
    load.first.then(seen);
  }

  // More of the current item has come.
  arrived() {
    const { strip, missing, item } = this.current, note = byId("note");
    const text = missing.has(this.frame) ? "no picture of this frame" : strip && !strip.video ? strip.note || "the video is not at hand" : this.current.failure ? "the frames around it could not be had" : "";
    note.textContent = note.title = text;
    note.hidden = !text;
    if (!this.fix) this.draw();
    panel.place(item, this.frame, strip);
  }

  cover(text, action = null) {
    const root = byId("stage-cover");
    root.hidden = text === null;
    root.classList.toggle("still", action !== null);
    byId("stage-said").textContent = text ?? "";
    root.querySelector("button")?.remove();
    if (action) {
      const button = Object.assign(document.createElement("button"), { type: "button", className: "main", textContent: action.text });
      button.addEventListener("click", action.act);
      root.append(button);
      button.focus();
    }
  }

  // --- looking

  go(frame_index, playing = false) {
    this.frame = frame_index;
    this.strip.mark(frame_index);
    if (!playing) {
      setPressed("loop", false);
      this.current.sharp(frame_index);
    }
    this.arrived();
  }

  draw() {
    const load = this.current, playing = this.strip.playing, shape = playing ? load.shapes.get(this.frame) : load.whole(this.frame);
    const tint = playing ? shape?.tint ?? shape?.small : shape?.tint;
    this.stage.show({ picture: load.picture(this.frame), tint: tint ?? null, path: shape?.path ?? null, colour: load.item.colour });
  }

  step(by) {
    this.strip.stop();
    const next = this.strip.beside(this.frame, by);
    if (next !== null) this.go(next);
  }

  loop() {
    if (this.strip.playing) { this.strip.stop(); return this.go(this.frame); }
    if (this.strip.play()) setPressed("loop", true);
    else toast(this.current.strip?.video ? "One frame alone does not move" : "The frames are not here");
  }

  // --- answering

  inStretch(frame_index) {
    return this.current.strip?.frames.find((one) => one.frame_index === frame_index)?.in_stretch ?? frame_index === this.current.item.frame_index;
  }

  // accept, reject or absent: of the stretch, or of the frame on screen.
  verdict(verdict, scope = this.scope) {
    if (!this.ready()) return;
    const { item } = this.current, whole = scope === "stretch" || item.rows < 2;
    if (!whole && !this.inStretch(this.frame)) return toast("This frame lies outside of the stretch: Home goes back");
    const frame_index = whole ? item.frame_index : this.frame;
    const of = whole ? (item.rows > 1 ? `${item.rows} frames` : `frame ${frame_index}`) : `frame ${frame_index} alone`;
    this.submit({ verdict, scope: whole ? "stretch" : "frame", frame_index }, of);
  }

  pick(number) {
    if (!this.ready()) return;
    if (!this.choosing) return this.choose();
    const one = this.current.candidates.candidates[number], { frame_index } = this.current.candidates;
    if (!one) return;
    if (one.shown) return this.verdict("accept"); // picking what is there says that it is right
    if (!one.box) return toast("This candidate is empty: N says that the object is not there");
    this.submit({ verdict: "pick", scope: "frame", frame_index, candidate: number, mask: one.mask }, `candidate ${number + 1}`);
  }

  async choose() {
    const load = this.current;
    if (this.choosing) { this.choosing = false; candidates.close(); return; }
    try {
      if (!load.candidates) this.cover("The model looks at this frame");
      await load.fetchCandidates();
      if (this.current !== load || this.fix) return;
      this.cover(null);
      this.strip.stop();
      this.go(load.item.frame_index);
      this.choosing = true;
      candidates.open(load, (number) => this.pick(number));
      announce("Three candidates: 1, 2, 3 pick one");
    } catch (error) {
      if (this.current !== load) return;
      this.cover(null);
      toast(`No candidates: ${error.message}`, "warn");
    }
  }

  beginFix() {
    const load = this.current;
    if (!this.ready()) return;
    this.strip.stop();
    this.choosing = false;
    candidates.close();
    this.go(this.inStretch(this.frame) ? this.frame : load.item.frame_index);
    if (!load.picture(this.frame)) return toast("There is no picture of this frame to fix the mask on", "warn");
    this.stage.style.mask = true;
    setPressed("mask", true);
    this.draw();
    const changed = () => panel.fixing(this.fix);
    this.fix = new Fix(this.stage, load, this.frame, this.settings.max_points, { said: (text) => toast(text, "warn"), changed });
    this.fix.use("add");
    document.body.dataset.fixing = "";
    panel.fixing(this.fix);
    announce("Fixing: click what belongs to the object, Enter uses the mask, Escape leaves");
  }

  endFix() {
    if (!this.fix) return;
    this.fix.close();
    this.fix = null;
    delete document.body.dataset.fixing;
    panel.fixing(null);
    if (this.current) this.draw();
  }

  confirm() {
    const { fix } = this;
    if (!fix) return;
    if (fix.busy) return toast("The mask is being made: in a moment");
    if (fix.empty) return toast("The mask is empty: Esc, then N says that the object is not there");
    if (!fix.touched) return toast("Nothing changed: Esc, then A accepts the mask as it is");
    const mask = encode(decode(fix.rle)); // always in the plain form
    this.submit({ verdict: "fix", scope: "frame", frame_index: fix.frame_index, mask, prompts: fix.prompts() }, `frame ${fix.frame_index}`);
  }

  // Whether an answer can be meant for what is on screen.
  ready() {
    return this.current && this.shownAt !== null && performance.now() - this.shownAt > TOO_SOON && !this.current.lost;
  }

  submit(said, of) {
    const load = this.current, from = performance.now(), { item } = load;
    const spent = Math.max(0, from - this.shownAt - this.hidden) / 1000;
    const body = { answer_id: id(), lease_id: load.lease_id, ...said, seconds: Math.round(spent * 1000) / 1000 };
    const entry = { item_id: item.item_id, body, at: Date.now(), said: `${panel.NAMES[said.verdict]}: ${panel.named(item)}, ${of}` };
    this.done.push({ entry, load, until: Infinity });
    for (const old of this.done.splice(0, this.done.length - BACK)) old.load.close();
    load.listeners.clear();
    this.outbox.add(entry);
    this.figures.answered(spent);
    panel.last(entry);
    announce(entry.said);
    this.advance(from);
  }

  skip() {
    if (!this.ready()) return;
    const load = this.current, from = performance.now();
    api.skip(load.item.item_id, load.lease_id, "skipped on the page").catch(() => {}); // a lease that nobody renews ends by itself
    toast(`Skipped: ${panel.named(load.item)}; it comes back last`);
    load.close();
    this.advance(from);
  }

  async undo() {
    const one = this.done.at(-1);
    if (!one || this.undoing) return;
    this.undoing = true;
    try {
      const { entry, load } = one;
      if (!(await this.outbox.takeBack(entry.body.answer_id))) load.lease(await api.undo(entry.body.answer_id));
      this.done.pop();
      panel.last(this.done.at(-1)?.entry);
      this.figures.answered(null, -1);
      if (this.current) { this.endFix(); this.current.listeners.clear(); this.lane.unshift(this.current); }
      const again = load.full.size ? load : new Load({ item: load.item, lease_id: load.lease_id, seconds_left: (load.until - Date.now()) / 1000 }, this.lane.width());
      clearTimeout(this.later);
      this.present(again);
      toast("Taken back: answer it again");
    } catch (error) {
      if (!(error instanceof api.Unreachable)) { this.done.pop(); panel.last(this.done.at(-1)?.entry); }
      toast(error instanceof api.Unreachable ? `Not taken back: ${error.message}` : "Too late to take back: the answer is on its way into the labels", "warn");
    } finally {
      this.undoing = false;
    }
  }

  filter(wanted) {
    this.lane.empty();
    this.lane.filter = wanted;
    const load = this.current;
    if (load && ((wanted.drop && load.item.drop !== wanted.drop) || (wanted.label && load.item.label !== wanted.label))) {
      this.endFix();
      api.release(load.item.item_id, load.lease_id).catch(() => {});
      load.close();
      this.current = null;
    }
    if (this.current) this.refill(); else this.advance();
  }

  // The item on screen is this reviewer's again.
  goOn() {
    this.cover(null);
    this.shownAt = performance.now();
    this.hidden = 0;
    this.refill();
  }

  // Answers that cannot be taken back any more.
  expire() {
    if (!this.done.length || this.done.at(-1).until >= Date.now()) return;
    this.done = [];
    panel.last(null);
  }
}

function id() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

// Starts the page: login, the keys and buttons, light and dark, and what is said of the connection.

import * as api from "./api.js";
import { byId, setPressed, toast } from "./dom.js";
import * as keys from "./keys.js";
import * as panel from "./panel.js";
import * as screens from "./screens.js";
import { Stage } from "./stage.js";
import { Work } from "./work.js";

const REVIEWER = "masksieve.reviewer", THEME = "masksieve.theme";
const stage = new Stage(byId("canvas"));
let work = null;
let token = new URLSearchParams(location.hash.slice(1)).get("token");
if (location.hash) history.replaceState(null, "", location.pathname + location.search); // the token stays out of the history

const remembered = (key) => { try { return localStorage.getItem(key); } catch { return null; } };
const remember = (key, value) => { try { localStorage.setItem(key, value); } catch { /* for this visit only */ } };

// --- login

function ask(kept = false) {
  screens.login(token, remembered(REVIEWER), kept, async (secret, reviewer) => {
    const settings = await api.login(secret, reviewer);
    remember(REVIEWER, settings.reviewer);
    begin(settings);
  });
}

function begin(settings) {
  token = null;
  work?.close();
  const wanted = new URLSearchParams(location.search), filter = {};
  for (const kind of ["drop", "label"]) if (wanted.get(kind)) filter[kind] = wanted.get(kind);
  work = new Work(stage, settings, filter);
  work.start();
}

async function boot() {
  screens.loading("Opening the queue");
  try {
    if (token && remembered(REVIEWER)) begin(await api.login(token, remembered(REVIEWER)));
    else if (token) ask();
    else begin(await api.me());
  } catch (error) {
    if (error instanceof api.Unreachable) {
      screens.offline(0, boot);
      setTimeout(() => { if (document.body.dataset.screen === "offline" && !work) boot(); }, 5000);
    } else if (error.kind === "login" || error.status === 401) { token = null; ask(); }
    else screens.error(error, boot);
  }
}

// --- connection

let away = false;
function reach(there) {
  if (away === !there) return;
  away = !there;
  const banner = byId("banner");
  banner.hidden = there;
  banner.textContent = "No connection. You can go on: answers are kept in this browser and sent once the server is back.";
  if (work) work.unreachable = away;
  if (there && work) { toast("Connected again"); work.outbox.kick(); work.refill(); }
}

async function knock() {
  if (!away) return;
  try { await api.me(); } catch { /* told by listen */ }
}

api.listen({ reach, login: () => { if (document.body.dataset.screen !== "login") { work?.close(); ask(Boolean(work)); } } });
window.addEventListener("offline", () => reach(false));
window.addEventListener("online", knock);
setInterval(knock, 4000);

// --- what keys and buttons do

const actions = {
  accept: () => work.verdict("accept"),
  reject: () => work.verdict("reject"),
  absent: () => work.verdict("absent"),
  fix: () => work.beginFix(),
  candidates: () => work.choose(),
  "pick-1": () => work.pick(0),
  "pick-2": () => work.pick(1),
  "pick-3": () => work.pick(2),
  skip: () => work.skip(),
  undo: () => work.undo(),
  scope: () => scope(work.scope === "stretch" ? "frame" : "stretch"),
  "scope-stretch": () => scope("stretch"),
  "scope-frame": () => scope("frame"),
  before: () => work.step(-1),
  after: () => work.step(1),
  home: () => { work.strip.stop(); work.go(work.current.item.frame_index); },
  loop: () => work.loop(),
  close: () => { if (work.choosing) work.choose(); else if (work.strip.playing) work.loop(); },
  mask: () => style("mask"),
  outline: () => style("outline"),
  "zoom-in": () => stage.zoom(1.25),
  "zoom-out": () => stage.zoom(0.8),
  fit,
  confirm: () => work.confirm(),
  cancel: () => work.endFix(),
  clear: () => work.fix.clear(),
  "step-back": () => { if (!work.fix.back()) toast("Nothing to take back; Esc leaves"); },
  smaller: () => work.fix.sized(0.8),
  larger: () => work.fix.sized(1.25),
  queue: queueDialog,
  help: () => { keys.help(); byId("help").showModal(); },
  theme: () => theme(shade() === "dark" ? "light" : "dark"),
  logout: async () => { byId("queue").close(); work.keeper.leave(); work.close(); await api.logout().catch(() => {}); work = null; ask(); },
};
for (const mode of ["add", "remove", "brush", "erase"]) actions[`tool-${mode}`] = () => { work.fix.use(mode); work.fix.changed(); };
const ANYWHERE = new Set(["theme", "help", "queue", "logout"]);

function act(action) {
  if (action === "undo" && work) return work.undo();
  if (!ANYWHERE.has(action) && (document.body.dataset.screen !== "work" || !work?.current)) return;
  if (/^(tool-|clear|step-back|smaller|larger|confirm)/.test(action) && !work?.fix) return;
  actions[action]();
}

async function queueDialog() {
  if (!work) return;
  const show = () => work.figures.open(work.lane.filter, (wanted) => { byId("queue").close(); work.filter(wanted); });
  show();
  byId("queue").showModal();
  await work.figures.look(true);
  if (byId("queue").open) show();
}

function scope(wanted) {
  if (work.current.item.rows < 2) return;
  work.scope = wanted;
  document.activeElement?.blur?.();
  panel.scope(wanted);
}

function style(which) {
  if (which === "mask") stage.style.mask = !stage.style.mask;
  else { stage.style.fill = !stage.style.fill; stage.style.mask = true; }
  setPressed("mask", stage.style.mask);
  setPressed("outline", !stage.style.fill);
  stage.draw();
}

function fit() {
  const box = work.fix?.bounds ?? work.current.shapes.get(work.frame)?.box;
  if (stage.fitted && box) stage.closer(box); else stage.fit();
}

stage.onzoom = (factor) => { byId("zoom").textContent = `${Math.round(100 * factor)}%`; };

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-do]");
  if (!button || button.disabled) return;
  act(button.dataset.do);
  if (event.detail) button.blur(); // a pointer leaves the keys with the item
});
keys.listen(() => (document.querySelector("dialog[open]") || !["work", "empty", "budget"].includes(document.body.dataset.screen) ? null : work?.fix ? "fix" : "look"), act);
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => byId("canvas").focus({ preventScroll: true }));
}
for (const event of ["pointerdown", "pointermove", "keydown", "wheel"]) document.addEventListener(event, () => { if (work) work.keeper.touched = Date.now(); }, { passive: true });
let hiddenAt = null;
document.addEventListener("visibilitychange", () => {
  if (document.hidden) hiddenAt = performance.now();
  else if (work && hiddenAt !== null) { work.hidden += performance.now() - hiddenAt; hiddenAt = null; }
});

// --- light and dark

function shade() {
  return document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
}

function theme(wanted) {
  document.documentElement.dataset.theme = wanted;
  remember(THEME, wanted);
  byId("theme").textContent = wanted === "dark" ? "☾" : "☀";
}

if (["dark", "light"].includes(remembered(THEME))) document.documentElement.dataset.theme = remembered(THEME);
byId("theme").textContent = shade() === "dark" ? "☾" : "☀";

boot();

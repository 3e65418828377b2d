// Which key does what: one table for the keyboard and for the help.

import { byId, element } from "./dom.js";

// [keys, action, group, said in the help]; "fix" actions hold while a mask is fixed, all others while it is not.
const TABLE = [
  ["a", "accept", "Answer", "Accept: the mask is right"],
  ["f", "fix", "Answer", "Fix the mask"],
  ["c", "candidates", "Answer", "Candidates side by side"],
  ["1", "pick-1", "Answer", "Pick a candidate: 1, 2, 3"],
  ["2", "pick-2", "Answer", null],
  ["3", "pick-3", "Answer", null],
  ["n", "absent", "Answer", "Not there: the object is not in view"],
  ["r", "reject", "Answer", "Reject: wrong, and not worth fixing"],
  ["Tab", "scope", "Answer", "For the whole stretch or this frame"],
  ["s", "skip", "Answer", "Skip: somebody else, or later"],
  ["z", "undo", "Answer", "Undo the last answer"],
  ["m", "mask", "Look", "Mask on or off", "both"],
  ["o", "outline", "Look", "Outline only", "both"],
  ["ArrowLeft", "before", "Look", "Frame before or after: ← →"],
  ["ArrowRight", "after", "Look", null],
  ["Home", "home", "Look", "Back to the asked frame"],
  ["l", "loop", "Look", "Play the stretch"],
  ["+", "zoom-in", "Look", "Zoom: + − or the wheel; drag moves", "both"],
  ["=", "zoom-in", "Look", null, "both"],
  ["-", "zoom-out", "Look", null, "both"],
  ["0", "fit", "Look", "Closer to the object, or the whole frame", "both"],
  ["p", "tool-add", "Fix", "Click: belongs to it; drag: a box", "fix"],
  ["x", "tool-remove", "Fix", "Click: does not (also Shift or right button)", "fix"],
  ["b", "tool-brush", "Fix", "Brush", "fix"],
  ["e", "tool-erase", "Fix", "Eraser", "fix"],
  ["[", "smaller", "Fix", "Size of the brush: [ ]", "fix"],
  ["]", "larger", "Fix", null, "fix"],
  ["k", "clear", "Fix", "Clear: start from nothing", "fix"],
  ["z", "step-back", "Fix", "Take back the last step", "fix"],
  ["Enter", "confirm", "Fix", "Use this mask", "fix"],
  ["Escape", "cancel", "Fix", "Leave without an answer", "fix"],
  ["Escape", "close", "Look", null],
  ["q", "queue", "Page", "Queue and figures", "both"],
  ["d", "theme", "Page", "Dark or light", "both"],
  ["?", "help", "Page", "This help", "both"],
];
const ONCE = new Set(["accept", "absent", "reject", "skip", "undo", "confirm", "fix", "pick-1", "pick-2", "pick-3", "scope", "mask", "outline", "loop"]);
const SHOWN = { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc" };

// mode() is "fix", "look" or null (keys rest); act(action) does it.
export function listen(mode, act) {
  document.addEventListener("keydown", (event) => {
    const now = mode();
    if (now === null || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    const target = event.target, typing = target.closest?.("input, select, textarea, dialog[open]");
    if (typing) return;
    const focused = target !== document.body && target.id !== "canvas";
    if (event.key === "Tab" && (focused || event.shiftKey)) return; // once a control has the focus, Tab moves it on
    if ((event.key === "Enter" || event.key === " ") && focused) return; // presses the control
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    const found = TABLE.find(([one, , , , when]) => one === key && (when === "both" || (when === "fix") === (now === "fix")));
    if (!found) return;
    event.preventDefault();
    if (key === "Escape" && focused) target.blur();
    if (event.repeat && ONCE.has(found[1])) return;
    act(found[1], event);
  });
}

export function help() {
  const root = byId("help-keys");
  if (root.children.length) return;
  for (const group of ["Answer", "Look", "Fix", "Page"]) {
    const part = element(root, "section");
    element(part, "h3", {}, group);
    const list = element(part, "dl");
    for (const [key, , where, text] of TABLE) {
      if (where !== group || !text) continue;
      element(element(list, "dt"), "kbd", {}, SHOWN[key] ?? (key.length === 1 ? key.toUpperCase() : key));
      element(list, "dd", {}, text);
    }
  }
  element(root, "p", { class: "small faint" }, "Tab switches what an answer is for; Shift+Tab goes to the buttons, from there Tab moves on and Esc comes back.");
}

// A few lines that every part of the page uses: elements, plain words for numbers, messages.

export const byId = (id) => document.getElementById(id);

export function element(parent, name, attributes = {}, text = null) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) made.setAttribute(key, value === true ? "" : value);
  if (text !== null) made.textContent = text;
  parent?.appendChild(made);
  return made;
}

export const count = (n) => n.toLocaleString("en-US");
export const counted = (n, what) => `${count(n)} ${what}${n === 1 ? "" : "s"}`;
export const percent = (x) => (x === null || x === undefined ? "–" : `${(100 * x).toFixed(x < 0.1 ? 1 : 0)}%`);

export function seconds(s) {
  if (s === null || s === undefined || !isFinite(s)) return "–";
  if (s < 10) return `${s.toFixed(1)} s`;
  return s < 90 ? `${Math.round(s)} s` : `${Math.round(s / 60)} min`;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b), half = sorted.length >> 1;
  return sorted.length ? (sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2) : null;
}

// A message that goes by itself; kind: "", "warn".
export function toast(text, kind = "", shown = 5) {
  const box = byId("toasts");
  while (box.children.length > 2) box.firstChild.remove();
  const made = element(box, "div", { class: `toast ${kind}` }, text);
  setTimeout(() => made.remove(), 1000 * shown);
}

// Told to a screen reader, seen by nobody.
export function announce(text) {
  byId("said").textContent = text;
}

export function setPressed(action, pressed) {
  for (const button of document.querySelectorAll(`[data-do="${action}"]`)) button.setAttribute("aria-pressed", String(pressed));
}

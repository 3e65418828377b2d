// The right side: what is asked and why, what an answer is for, and how a fix stands.

import { announce, byId, counted, element, setPressed } from "./dom.js";

export const NAMES = { accept: "Accepted", reject: "Rejected", absent: "Not there", pick: "Picked", fix: "Fixed" };

export const named = (item) => item.label || `object ${item.object_id}`;

export function show(item) {
  byId("swatch").style.background = item.colour;
  byId("label").textContent = named(item);
  byId("video").textContent = item.video_name;
  byId("video").title = `${item.drop} · ${item.video_name} · object ${item.object_id}`;
  byId("headline").textContent = sentence(item.headline.split(";")[0]); // the rest of it is the first of the words
  const words = byId("words");
  words.replaceChildren();
  for (const line of item.words) element(words, "li", {}, line);
  byId("scope-stretch").textContent = `all ${item.rows} frames`;
  byId("scope").hidden = item.rows < 2;
  announce(`${named(item)}, frame ${item.frame_index} of ${item.video_name}. ${item.headline}. ${item.words.join(". ")}`);
}

export function place(item, frame_index, strip) {
  const frame = strip?.frames.find((one) => one.frame_index === frame_index);
  const asked = frame_index === item.frame_index, inside = frame ? frame.in_stretch : asked;
  const parts = [inside && item.rows > 1 ? `frame ${frame_index} of ${item.first_frame}–${item.last_frame}` : `frame ${frame_index}`];
  if (!inside) parts.push("outside of the stretch");
  if (frame?.pts_seconds !== null && frame?.pts_seconds !== undefined) parts.push(`${frame.pts_seconds.toFixed(2)} s`);
  if (!asked) parts.push(`asked about ${item.frame_index}`);
  if (frame?.visibility === "absent") parts.push("said to be absent");
  byId("where").textContent = parts.join(" · ");
  byId("where").classList.toggle("away", !asked);
}

export function scope(scope) {
  setPressed("scope-stretch", scope === "stretch");
  setPressed("scope-frame", scope === "frame");
}

export function fixing(fix) {
  byId("fixbar").hidden = byId("fixing").hidden = !fix;
  for (const id of ["answers", "ask", "after"]) byId(id).hidden = Boolean(fix);
  byId("scope").classList.toggle("gone", Boolean(fix));
  if (!fix) return;
  const hints = {
    add: "Click what belongs to the object, or drag a box around it.",
    remove: "Click what does not belong to it.",
    brush: "Paint over what belongs to it.",
    erase: "Rub out what does not belong to it.",
  };
  byId("fix-hint").textContent = hints[fix.mode];
  const steps = [fix.points.length && counted(fix.points.length, "click"), fix.box && "a box", fix.strokes && counted(fix.strokes, "stroke")].filter(Boolean);
  byId("fix-state").textContent = fix.busy ? "the mask is being made…" : fix.empty ? "The mask is empty." : steps.length ? steps.join(", ") : "Nothing changed yet.";
  for (const mode of Object.keys(hints)) setPressed(`tool-${mode}`, fix.mode === mode);
  byId("sizes").hidden = !fix.brushing;
}

export function last(entry) {
  byId("undo").disabled = !entry;
  byId("last").textContent = entry ? entry.said : "";
}

function sentence(text) {
  return text ? text[0].toUpperCase() + text.slice(1) : "";
}

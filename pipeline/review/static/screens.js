// What stands in the place of an item: login, loading, an empty queue, a spent budget, no connection, an error.

import { byId, element } from "./dom.js";

const ICONS = {
  done: "M9 16.500l4.200 4.200L23 11M16 3a13 13 0 1 0 0 26 13 13 0 0 0 0-26z",
  budget: "M16 3a13 13 0 1 0 0 26 13 13 0 0 0 0-26zM16 9v7.500l5 3",
  offline: "M4 4l24 24M9 21a5 5 0 0 1 .6-9.900M13 9.300A7.500 7.500 0 0 1 23.500 14 4.800 4.800 0 0 1 27 20.500M9 21h13",
  error: "M16 4L3 27h26zM16 13v6.500M16 23v.5",
  login: "M10 14V10a6 6 0 0 1 12 0v4M7 14h18v14H7zM16 19.500v3",
};

function card(icon, title, ...lines) {
  const root = byId("screen");
  root.replaceChildren();
  const made = element(root, "div", { class: "card" });
  if (icon === "loading") element(made, "div", { class: "spinner", "aria-hidden": "true" });
  else made.insertAdjacentHTML("beforeend", `<svg viewBox="0 0 32 32" class="sign ${icon}" aria-hidden="true"><path d="${ICONS[icon]}"/></svg>`);
  element(made, "h1", {}, title);
  for (const line of lines) if (line) element(made, "p", { class: "faint" }, line);
  return made;
}

function on(name) {
  document.body.dataset.screen = name;
  document.title = { work: "Review · masksieve", login: "Log in · Review" }[name] ?? "Review · masksieve";
}

function button(parent, text, act, kind = "main") {
  const made = element(parent, "button", { type: "button", class: kind }, text);
  made.addEventListener("click", act);
  made.focus();
  return made;
}

export const work = () => on("work");

export function loading(text = "Getting the first items") {
  on("loading");
  card("loading", text);
}

export function nothing({ filter, every }, clear) {
  on("empty");
  const made = card("done", filter ? `Nothing waits for ${filter}` : "Nothing waits", `New items come by themselves; this page looks every ${every} seconds.`);
  if (filter) button(made, "Show everything", clear);
}

export function budget(error, again) {
  on("budget");
  button(card("budget", "Today's budget is spent", sentence(error.message), sentence(error.nextStep)), "Look again", again);
}

export function offline(kept, again) {
  on("offline");
  const said = kept ? `${kept} answer${kept === 1 ? " is" : "s are"} kept in this browser and sent once the server is back.` : "It goes on by itself once the server is back.";
  button(card("offline", "The server cannot be reached", said), "Try now", again);
}

export function error(error, again) {
  on("error");
  button(card("error", "The server could not go on", sentence(error.message), sentence(error.nextStep)), "Try again", again);
}

// token: one that came with the address, or null. enter(token, reviewer) logs in and raises where it is refused.
export function login(token, reviewer, kept, enter) {
  on("login");
  const made = card("login", "Who reviews?", kept ? "You were logged out. Your answers are kept in this browser." : "Your name goes beside each of your answers.");
  const form = element(made, "form", { novalidate: true });
  const field = (id, text, attributes) => {
    const label = element(form, "label", { for: id });
    element(label, "span", {}, text);
    return element(label, "input", { id, name: id, ...attributes });
  };
  const name = field("reviewer", "Name", { autocomplete: "username", maxlength: 80, required: true, autocapitalize: "words" });
  name.value = reviewer ?? "";
  const secret = token ? null : field("token", "Token", { type: "password", autocomplete: "current-password", required: true, spellcheck: "false" });
  const wrong = element(form, "p", { class: "wrong", role: "alert" });
  const go = element(form, "button", { class: "main" }, "Start");
  if (!token) element(form, "p", { class: "small faint" }, "masksieve review serve printed the token, and an address that holds it.");
  (name.value && secret ? secret : name).focus();
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    if (!name.value.trim()) { wrong.textContent = "A name is needed."; return name.focus(); }
    if (secret && !secret.value) { wrong.textContent = "The token is needed."; return secret.focus(); }
    go.disabled = true;
    try {
      await enter(token ?? secret.value.trim(), name.value.trim());
    } catch (refused) {
      wrong.textContent = refused.kind === "login" ? `This token is not the right one.${refused.nextStep ? ` ${sentence(refused.nextStep)}` : ""}` : sentence(refused.message);
      if (token && refused.kind === "login") return login(null, name.value, kept, enter);
      (secret ?? name).focus();
    } finally {
      go.disabled = false;
    }
  });
}

const sentence = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1).replace(/\.$/, "")}.` : "");

// Talks to the server: JSON in and out, and two kinds of failure, a refusal that says why and a server out of reach.

export class Refused extends Error {
  constructor(status, error) {
    super([error.expected && `expected ${error.expected}`, error.got && `got ${error.got}`].filter(Boolean).join(", ") || `status ${status}`);
    this.status = status;
    this.kind = error.kind || "unknown";
    this.nextStep = error.next_step || "";
  }
}

export class Unreachable extends Error {}

const ROOT = "/api/v1/";
const heard = { reach() {}, login() {} };

// Tells of every answer whether the server could be reached, and of every one that wants a login.
export function listen(listeners) {
  Object.assign(heard, listeners);
}

async function request(method, path, { body, seconds = 20, keepalive = false } = {}) {
  const options = { method, credentials: "same-origin", keepalive, headers: {}, signal: AbortSignal.timeout(1000 * seconds) };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let response;
  try {
    response = await fetch(ROOT + path, options);
  } catch (error) {
    heard.reach(false);
    throw new Unreachable(error.name === "TimeoutError" ? "the server did not answer in time" : "the server cannot be reached");
  }
  if (response.status >= 502 && response.status <= 504) { // a proxy before a server that is away
    heard.reach(false);
    throw new Unreachable(`the server cannot be reached (${response.status})`);
  }
  heard.reach(true);
  if (response.ok) return response;
  let error = {};
  try { error = (await response.json()).error || {}; } catch { /* not ours: the status has to do */ }
  if (response.status === 401 && path !== "login") heard.login();
  throw new Refused(response.status, error);
}

const json = async (...call) => (await request(...call)).json();
const item = (id, what) => `items/${encodeURIComponent(id)}/${what}`;

export const me = () => json("GET", "me");
export const login = (token, reviewer) => json("POST", "login", { body: { token, reviewer } });
export const logout = () => request("POST", "logout", { body: {} });
export const claim = (wanted) => json("POST", "claim", { body: wanted, seconds: 60 });
export const answer = (id, body) => json("POST", item(id, "answer"), { body });
export const skip = (id, lease_id, reason) => request("POST", item(id, "skip"), { body: { lease_id, reason } });
export const renew = (id, lease_id) => json("POST", item(id, "renew"), { body: { lease_id } });
export const release = (id, lease_id) => request("POST", item(id, "release"), { body: { lease_id }, keepalive: true });
export const undo = (answer_id) => json("POST", "undo", { body: { answer_id } });
export const strip = (id) => json("GET", item(id, "strip"), { seconds: 120 }); // a video may have to be fetched first
export const candidates = (id) => json("GET", item(id, "candidates"), { seconds: 60 });
export const segment = (id, body) => json("POST", item(id, "segment"), { body, seconds: 30 });
export const stats = () => json("GET", "stats");

export async function picture(id, frame_index, width) {
  const response = await request("GET", item(id, `frames/${frame_index}.jpg?width=${width}`), { seconds: 120 });
  return createImageBitmap(await response.blob());
}

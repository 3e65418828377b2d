"use strict";
// Draws the page of a sweep for the threshold that the slider is at. All figures come from the JSON in the page.
const D = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const slider = byId("slider");
const K = D.thresholds.length;
const SVG = "http://www.w3.org/2000/svg";

const risky = (x) => percent(x, x !== null && x < 0.01 ? 2 : 1);
const percent = (x, digits = 1) => (x === null ? "–" : (100 * x).toFixed(digits) + "%");
const count = (x) => x.toLocaleString("en-US");
const counted = (x, what) => `${count(x)} ${what}${x === 1 ? "" : "s"}`;
const share = (x) => (x === null ? "–" : x.toFixed(2));
const brief = (x) => (x === null ? "–" : x >= 100 ? count(Math.round(x)) : x >= 10 ? x.toFixed(1) : x.toFixed(2));
const threshold = (x) => (x.toFixed(3) == x ? x.toFixed(3) : String(x));

function element(parent, name, attributes = {}, text = null, space = null) {
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  parent.appendChild(made);
  return made;
}

// The nearest round number of ticks for an axis that ends at `top`.
function ticks(top, most) {
  if (!(top > 0)) return [0];
  const raw = top / most, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((x) => x * size).find((x) => top / x <= most);
  const found = [];
  for (let x = 0; x <= top * 1.0001; x += step) found.push(x);
  return found;
}

// An empty chart: axes with titles and ticks; gives back how to place things in it.
function frame(id, xTop, yTop, xTitle, yTitle, xSaid, ySaid) {
  const svg = byId(id), width = Math.max(260, svg.clientWidth), height = 210;
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  svg.replaceChildren();
  const left = 46, right = width - 18, top = 24, bottom = height - 38;
  const x = (value) => left + (value / (xTop || 1)) * (right - left);
  const y = (value) => bottom - (value / (yTop || 1)) * (bottom - top);
  const draw = (name, attributes, text) => element(svg, name, attributes, text, SVG);
  for (const value of ticks(yTop, 4)) {
    draw("line", { class: "grid", x1: left, x2: right, y1: y(value), y2: y(value) });
    draw("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, ySaid(value));
  }
  for (const value of ticks(xTop, width > 330 ? 5 : 4))
    draw("text", { x: x(value), y: bottom + 15, "text-anchor": "middle" }, xSaid(value));
  draw("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom });
  draw("text", { x: right, y: height - 6, "text-anchor": "end" }, xTitle);
  draw("text", { x: 4, y: 12 }, yTitle);
  return { x, y, draw, left, right, top, bottom, svg };
}

const path = (points) => points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
const round = (x) => String(+x.toPrecision(6));
const whole = (x) => percent(x, x > 0 && x < 0.01 ? 1 : 0);

function line(c, xs, ys) {
  const points = xs.map((x, i) => [x, ys[i]]).filter(([x, y]) => x !== null && y !== null);
  if (points.length) c.draw("path", { class: "curve", d: path(points.map(([x, y]) => [c.x(x), c.y(y)])) });
}

// Where the slider is, and a ring where the policy is.
function mark(c, xs, ys, k) {
  for (const [i, cls, r] of [[D.start, "policy", 4.5], [k, "dot", 6]])
    if (xs[i] !== null && ys[i] !== null) c.draw("circle", { class: cls, cx: c.x(xs[i]), cy: c.y(ys[i]), r });
}

function drawRisk(k) {
  if (!D.risk) {
    const c = frame("risk", 1, 1, "threshold", "coverage", round, whole);
    line(c, D.thresholds, D.coverage);
    mark(c, D.thresholds, D.coverage, k);
    return jump(c, D.thresholds);
  }
  const R = D.risk, known = R.error.map((_, i) => i).filter((i) => R.error[i] !== null && D.coverage[i] > 0);
  const between = known.filter((i) => R.low[i] !== null), settled = between.filter((i) => R.videos[i] >= 20);
  const shown = settled.length ? settled : known; // few videos have intervals that would dwarf the rest
  const top = Math.min(1, 1.05 * Math.max(0.02, ...shown.map((i) => R.high[i] ?? R.error[i])));
  const c = frame("risk", 1, top, "coverage", "error rate", whole, whole);
  const clip = (value) => Math.min(value, top);
  if (between.length) {
    const up = between.map((i) => [c.x(D.coverage[i]), c.y(clip(R.high[i]))]);
    const down = between.map((i) => [c.x(D.coverage[i]), c.y(clip(R.low[i]))]).reverse();
    c.draw("path", { class: "band", d: path([...up, ...down]) + "Z" });
  }
  if (!known.length) c.draw("text", { x: (c.left + c.right) / 2, y: (c.top + c.bottom) / 2, "text-anchor": "middle" }, "no accepted mask has truth");
  const error = R.error.map((e) => (e === null ? null : clip(e)));
  line(c, D.coverage, error);
  mark(c, D.coverage, error, k);
  jump(c, D.coverage);
}

function drawHistogram(k) {
  const H = D.histogram, top = Math.max(1, ...H.passing.map((n, i) => n + H.stopped[i]));
  const c = frame("histogram", 1, top, "uncertainty", "masks", round, (n) => (n >= 10000 ? n / 1000 + "k" : count(n)));
  const at = D.thresholds[k], n = H.passing.length, wide = (c.right - c.left) / n;
  H.passing.forEach((passing, i) => {
    const x = c.left + i * wide, box = (cls, from, to, a, b) => {
      if (to > from && b > a)
        c.draw("rect", { class: cls, x: a, width: Math.max(0, b - a - (b === x + wide ? 1 : 0)), y: c.y(to), height: c.y(from) - c.y(to) });
    };
    const cut = Math.min(Math.max(c.x(at), x), x + wide);
    box("taken", 0, passing, x, cut);
    box("rest", 0, passing, cut, x + wide);
    box("stopped", passing, passing + H.stopped[i], x, x + wide);
  });
  const policy = c.x(D.thresholds[D.start]);
  c.draw("line", { class: "policy", x1: policy, x2: policy, y1: c.top - 6, y2: c.bottom });
  c.draw("line", { class: "cut", x1: c.x(at), x2: c.x(at), y1: c.top - 6, y2: c.bottom });
  c.draw("text", { class: "said", x: c.x(at) + (at > 0.8 ? -5 : 5), y: c.top, "text-anchor": at > 0.8 ? "end" : "start" }, threshold(at));
  jump(c, D.thresholds);
}

function drawLoad(k) {
  const top = 1.05 * Math.max(1e-9, ...D.perVideo);
  const c = frame("load", 1, top, "threshold", "stretches per video", round, round);
  line(c, D.thresholds, D.perVideo);
  mark(c, D.thresholds, D.perVideo, k);
  jump(c, D.thresholds);
}

// A click into a chart moves the slider to the threshold nearest to it.
function jump(c, values) {
  c.svg.onclick = (event) => {
    const box = c.svg.getBoundingClientRect(), scale = c.svg.viewBox.baseVal.width / box.width;
    const wanted = ((event.clientX - box.left) * scale - c.left) / (c.right - c.left);
    let best = 0;
    values.forEach((value, i) => { if (value !== null && Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = i; });
    go(best);
  };
}

function interval(low, high, said) {
  return low === null ? "one video: no interval" : `${D.confidence}: ${said(low)} to ${said(high)}`;
}

function tiles(k) {
  byId("coverage").textContent = percent(D.coverage[k]);
  byId("coverage-more").textContent = `${count(D.accepted[k])} of ${count(D.predicted)} masks accepted`;
  byId("review").textContent = brief(D.perVideo[k]);
  byId("review-more").textContent =
    `stretches per video; ${brief(D.perTime[k])} ${D.perTimeSaid}, ${counted(D.flagged[k], "mask")} in all`;
  if (!D.risk) return;
  const R = D.risk, none = R.error[k] === null;
  byId("error").textContent = risky(R.error[k]);
  byId("error-more").textContent = none ? "no accepted mask has truth" : interval(R.low[k], R.high[k], risky);
  byId("iou").textContent = R.iou[k] === null ? "–" : R.iou[k].toFixed(3);
  byId("iou-more").textContent =
    none ? "no accepted mask has truth" : `${interval(R.iouLow[k], R.iouHigh[k], (x) => x.toFixed(3))}; ${counted(R.rows[k], "mask")} of ${counted(R.videos[k], "video")}`;
}

const SIDE = 4;
function strip(k) {
  const at = D.thresholds[k];
  const below = D.examples.filter((one) => one.u <= at).slice(-SIDE), above = D.examples.filter((one) => one.u > at).slice(0, SIDE);
  for (const [id, some, nothing] of [["below", below, "no mask is below"], ["above", above, "no mask is above"]]) {
    const side = byId(id);
    side.querySelectorAll("figure,p").forEach((old) => old.remove());
    if (!some.length) element(side, "p", { class: "faint small" }, nothing);
    for (const one of some) {
      const figure = element(side, "figure");
      element(figure, "img", { src: "data:image/jpeg;base64," + one.jpeg, alt: one.caption, title: one.caption });
      const caption = element(figure, "figcaption");
      element(caption, "b", {}, one.u.toFixed(one.u.toFixed(3) === threshold(at) && one.u !== at ? 4 : 3));
      if (one.iou !== null) element(caption, "span", one.iou < D.badIou ? { class: "bad" } : {}, ` true IoU ${one.iou.toFixed(2)}`);
      element(caption, "div", { class: "faint" }, one.caption);
    }
  }
}

function groups(k) {
  D.groups.forEach((group, i) => {
    if (!byId("group-" + i)) return; // a single group is all there is, and has no table
    const row = byId("group-" + i), cell = (name) => row.querySelector("." + name);
    const coverage = group.predicted ? group.accepted[k] / group.predicted : null;
    cell("meter").firstElementChild.style.width = percent(coverage || 0);
    cell("covered").textContent = percent(coverage);
    cell("stretches").textContent = count(group.stretches[k]);
    if (!D.risk) return;
    const known = group.error && group.error[k] !== null;
    cell("error").textContent = known ? risky(group.error[k]) : "–";
    cell("between").textContent = known && group.low[k] !== null ? `${risky(group.low[k])} to ${risky(group.high[k])}` : "–";
  });
}

function draw() {
  const k = +slider.value, at = D.thresholds[k], policy = k === D.now;
  byId("threshold").textContent = threshold(at);
  slider.setAttribute("aria-valuetext", `threshold ${threshold(at)}, coverage ${percent(D.coverage[k])}` +
    (D.risk ? `, error rate ${risky(D.risk.error[k])}` : ""));
  byId("back").disabled = policy;
  const badge = byId("evidence");
  badge.textContent = policy ? D.evidence : D.passed[k] ? "certified too: the policy's certificate passed this threshold"
    : "uncertified: this threshold was looked at, no certificate names it";
  badge.classList.toggle("good", policy ? D.certified : D.passed[k]);
  tiles(k); drawRisk(k); drawHistogram(k); drawLoad(k); groups(k);
  if (D.examples.length) strip(k);
}

function go(k) {
  slider.value = k;
  draw();
  slider.focus({ preventScroll: true });
}

slider.max = K - 1;
slider.value = D.start;
slider.addEventListener("input", draw);
byId("back").addEventListener("click", () => go(D.start));
window.addEventListener("resize", draw);
draw();

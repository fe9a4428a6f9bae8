"use strict";
// Drawing primitives: SVG and canvas, no library. Data reaches the page as text nodes only.

const SVG = "http://www.w3.org/2000/svg";

function node(parent, name, attributes, text) {
  const element = name.startsWith("svg:") ? document.createElementNS(SVG, name.slice(4))
                                          : document.createElement(name);
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function clear(element) {
  while (element.firstChild) element.removeChild(element.firstChild);
  return element;
}

const grouped = (n) => String(n).replace(/\B(?=(\d{3})+(?!\d))/g, ",");

// Four significant digits, thousands grouped, never 1e+5.
function show(value) {
  if (value === null || !isFinite(value)) return "n/a";
  if (Math.abs(value) >= 9999.5) return grouped(Math.round(value));
  return String(+value.toPrecision(4));
}

function percent(part) {
  const p = 100 * part;
  return (p === 0 ? "0" : p < 0.01 ? "<0.01" : p < 10 ? p.toFixed(2) : p.toFixed(1)) + "\u00a0%";
}

function duration(seconds) {
  if (seconds < 1e-3) return show(+(1e6 * seconds).toPrecision(3)) + " \u00b5s";
  return seconds < 1 ? show(+(1e3 * seconds).toPrecision(3)) + " ms" : show(seconds) + " s";
}

// A few round numbers in [low, high].
function ticks(low, high, about) {
  const rough = (high - low) / Math.max(1, about);
  if (!(rough > 0)) return [low];
  const power = Math.pow(10, Math.floor(Math.log10(rough)));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough * 0.999);
  const list = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) {
    list.push(+(i * step).toPrecision(12));
  }
  return list;
}

// Whole numbers only, for batches and layers.
const wholeTicks = (low, high, about) => ticks(low, high, about).filter((t) => t % 1 === 0);

// Maps an imbalance to [0, 1]: linear from `low` to `high`, or by the logarithm of the excess over
// 1, from 0.01 % (where a perfect balance is drawn too) to `high`.
const EXCESS_FLOOR = 1e-4;
function imbalanceScale(high, logarithmic) {
  if (!logarithmic) {
    const top = Math.max(high, 1.01);
    const list = ticks(0, top - 1, 5).map((t) => +(1 + t).toFixed(9));
    return { at: (v) => (v - 1) / (top - 1), ticks: list, label: (t) => show(t) };
  }
  const low = Math.log10(EXCESS_FLOOR);
  const top = Math.max(low + 1, Math.log10(Math.max(high - 1, EXCESS_FLOOR)));
  const list = [];
  for (let e = low; e <= top + 1e-9; e++) list.push(1 + Math.pow(10, e));
  return {
    at: (v) => (Math.log10(Math.max(v - 1, EXCESS_FLOOR)) - low) / (top - low),
    ticks: list,
    label: (t) => (t - 1 <= EXCESS_FLOOR * 1.001 ? "\u2264" : "") + "+" +
                  +(100 * (t - 1)).toPrecision(2) + "\u00a0%",
  };
}

const tip = () => document.getElementById("tip");
function showTip(event, text) {
  const box = tip();
  box.textContent = text;
  box.style.display = "block";
  const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 6);
  const above = event.clientY + 18 + box.offsetHeight > window.innerHeight;
  box.style.left = Math.max(4, left) + "px";
  box.style.top = (above ? event.clientY - box.offsetHeight - 10 : event.clientY + 16) + "px";
}
function hideTip() { tip().style.display = "none"; }

// on(fraction of width, fraction of height, event) returns the tip's text or null.
function attachTip(element, on) {
  const move = (event) => {
    const box = element.getBoundingClientRect();
    const text = on((event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    if (text) showTip(event, text);
    else hideTip();
  };
  element.addEventListener("pointermove", move);
  element.addEventListener("pointerdown", move);
  element.addEventListener("pointerleave", hideTip);
}

// Lines over x in [x0, x1]. option: {height, x0, x1, xTicks, xLabel, yLabel, yTicks [{at, label}],
// series [{colour, dash, points [[x, y in 0..1]]}], tip(x)}.
function lineChart(parent, option) {
  clear(parent);
  const width = Math.max(280, parent.clientWidth), height = option.height;
  const left = option.left || 52, right = 14, top = 22, bottom = 40;
  const X = (x) => left + (x - option.x0) / Math.max(option.x1 - option.x0, 1e-9) *
                   (width - left - right);
  const Y = (y) => top + (1 - y) * (height - top - bottom);
  const svg = node(parent, "svg:svg", { viewBox: `0 0 ${width} ${height}`, height,
                                        role: "img", "aria-label": option.yLabel });
  for (const t of option.yTicks) {
    node(svg, "svg:line", { x1: left, x2: width - right, y1: Y(t.at), y2: Y(t.at), class: "grid" });
    node(svg, "svg:text", { x: left - 6, y: Y(t.at) + 4, "text-anchor": "end" }, t.label);
  }
  const label = option.xTickLabel || show;
  for (const t of option.xTicks) {
    node(svg, "svg:line", { x1: X(t), x2: X(t), y1: Y(0), y2: Y(0) + 4, class: "axis" });
    node(svg, "svg:text", { x: X(t), y: Y(0) + 17, "text-anchor": "middle" }, label(t));
  }
  node(svg, "svg:line", { x1: left, x2: width - right, y1: Y(0), y2: Y(0), class: "axis" });
  node(svg, "svg:text", { x: 0, y: 12 }, option.yLabel);
  node(svg, "svg:text", { x: width - right, y: height - 4, "text-anchor": "end" }, option.xLabel);
  for (const s of option.series) {
    const d = s.points.map((p, i) => (i ? "L" : "M") + X(p[0]).toFixed(1) + " " +
                                     Y(p[1]).toFixed(1)).join("");
    if (!d) continue;
    node(svg, "svg:path", { d, fill: "none", stroke: s.colour, "stroke-width": 2,
                            "stroke-dasharray": s.dash, "stroke-linejoin": "round" });
    if (s.points.length === 1) {
      node(svg, "svg:circle", { cx: X(s.points[0][0]), cy: Y(s.points[0][1]), r: 3,
                                fill: s.colour });
    }
  }
  const cursor = node(svg, "svg:line", { y1: top, y2: Y(0), class: "axis", visibility: "hidden" });
  attachTip(svg, (fx) => {
    const x = option.x0 + (fx * width - left) / (width - left - right) * (option.x1 - option.x0);
    const answer = x < option.x0 || x > option.x1 ? null : option.tip(x);
    cursor.setAttribute("visibility", answer ? "visible" : "hidden");
    if (!answer) return null;
    cursor.setAttribute("x1", X(answer.x));
    cursor.setAttribute("x2", X(answer.x));
    return answer.text;
  });
}

// Grouped bars from 1 upwards with a mark for the maximum. groups [{label, bars [{mean, max}]}].
function groupedBars(parent, groups, colours, top1, logarithmic, tipText) {
  clear(parent);
  const width = Math.max(280, parent.clientWidth), height = 260;
  const left = logarithmic ? 74 : 52, right = 8, top = 22, bottom = 40;
  const scale = imbalanceScale(top1, logarithmic);
  const Y = (v) => top + (1 - Math.max(0, Math.min(1, scale.at(v)))) * (height - top - bottom);
  const svg = node(parent, "svg:svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
                                        "aria-label": "imbalance by layer" });
  for (const t of scale.ticks) {
    node(svg, "svg:line", { x1: left, x2: width - right, y1: Y(t), y2: Y(t), class: "grid" });
    node(svg, "svg:text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, scale.label(t));
  }
  const step = (width - left - right) / groups.length;
  const every = Math.ceil(groups.length / Math.max(1, (width - left - right) / 30));
  groups.forEach((group, g) => {
    const each = step * 0.76 / group.bars.length;
    group.bars.forEach((bar, b) => {
      if (!(bar.mean > 0)) return;
      const x = left + g * step + step * 0.12 + b * each;
      const w = Math.max(1, each - (each > 6 ? 1 : 0));
      node(svg, "svg:rect", { x, width: w, y: Y(bar.mean), fill: colours[b],
                              height: Math.max(1, Y(1) - Y(bar.mean)) });
      node(svg, "svg:line", { x1: x, x2: x + w, y1: Y(bar.max), y2: Y(bar.max),
                              stroke: colours[b], "stroke-width": 2 });
    });
    if (g % every === 0) {
      node(svg, "svg:text", { x: left + (g + 0.5) * step, y: Y(1) + 16, "text-anchor": "middle" },
           group.label);
    }
  });
  node(svg, "svg:line", { x1: left, x2: width - right, y1: Y(1), y2: Y(1), class: "axis" });
  node(svg, "svg:text", { x: 0, y: 12 }, "max / mean load");
  node(svg, "svg:text", { x: width - right, y: height - 4, "text-anchor": "end" }, "layer");
  attachTip(svg, (fx) => {
    const g = Math.floor((fx * width - left) / step);
    return g >= 0 && g < groups.length ? tipText(g) : null;
  });
}

// One horizontal bar a row. rows [{name, value or null, text, colour}].
function rowBars(parent, rows) {
  const width = Math.max(240, parent.clientWidth), line = 34, height = rows.length * line + 2;
  const most = Math.max(...rows.map((r) => r.value || 0), 1e-30);
  const svg = node(parent, "svg:svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img" });
  rows.forEach((row, i) => {
    const y = i * line;
    const room = Math.floor(width * 0.62 / 7);
    const name = row.name.length > room ? row.name.slice(0, room - 1) + "\u2026" : row.name;
    node(svg, "svg:text", { x: 0, y: y + 13 }, name);
    node(svg, "svg:text", { x: width, y: y + 13, "text-anchor": "end", class: "ink" }, row.text);
    node(svg, "svg:rect", { x: 0, y: y + 18, width, height: 9, fill: "var(--grid)", rx: 2 });
    if (row.value > 0) {
      node(svg, "svg:rect", { x: 0, y: y + 18, width: Math.max(1.5, width * row.value / most),
                              height: 9, fill: row.colour, rx: 2 });
    }
  });
}

// ---- colour scales, read from the style sheet so that they follow the theme ----

function styleColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).split(",").map(Number);
}
function mix(a, b, t) {
  return "rgb(" + a.map((v, i) => Math.round(v + (b[i] - v) * t)).join(",") + ")";
}
// ratio 0 = cold, 1 = neutral, 2 and more = hot.
function divergingColours() {
  const cold = styleColour("--cold"), even = styleColour("--even"), hot = styleColour("--hot");
  return (r) => (r < 1 ? mix(even, cold, 1 - r) : mix(even, hot, Math.min(1, r - 1)));
}

// rows x columns of ratios; option: {rowLabel(i), tip(row, column)}.
function heatMap(parent, rows, columns, value, option) {
  clear(parent);
  const width = Math.max(240, parent.clientWidth), left = 30, bottom = 18;
  const each = Math.max(2, Math.min(22, Math.floor(420 / rows)));
  const height = rows * each + bottom;
  const canvas = node(parent, "canvas", { role: "img", "aria-label": "load by rank and batch" });
  const pixels = window.devicePixelRatio || 1;
  canvas.width = width * pixels;
  canvas.height = height * pixels;
  canvas.style.height = height + "px";
  const draw = canvas.getContext("2d");
  draw.scale(pixels, pixels);
  const colour = divergingColours(), step = (width - left) / columns;
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) {
      draw.fillStyle = colour(value(r, c));
      draw.fillRect(left + c * step, r * each, step + 0.5, each > 5 ? each - 1 : each);
    }
  }
  draw.fillStyle = getComputedStyle(document.documentElement).getPropertyValue("--dim");
  draw.font = "12px system-ui, sans-serif";
  draw.textBaseline = "middle";
  draw.textAlign = "right";
  const every = Math.max(1, Math.ceil(15 / each));
  for (let r = 0; r < rows; r += every) {
    draw.fillText(option.rowLabel(r), left - 5, Math.max(7, (r + 0.5) * each));
  }
  draw.textAlign = "left";
  draw.fillText("batch \u2192", left, rows * each + 10);
  attachTip(canvas, (fx, fy) => {
    const c = Math.floor((fx * width - left) / step), r = Math.floor(fy * height / each);
    return c >= 0 && c < columns && r >= 0 && r < rows ? option.tip(r, c) : null;
  });
}

/* Buttons of the policies, in every [data-legend]; off: the hidden ones, changed before redraw. */
function drawLegends(policies, off, colourOf, dashOf, redraw) {
  for (const legend of document.querySelectorAll("[data-legend]")) {
    clear(legend);
    policies.forEach((policy, p) => {
      const item = node(legend, "button", { type: "button", "aria-pressed": !off.has(p),
                                            title: "show or hide" });
      const key = node(item, "svg:svg", { class: "key", viewBox: "0 0 22 10" });
      node(key, "svg:line", { x1: 0, x2: 22, y1: 5, y2: 5, stroke: colourOf(p), "stroke-width": 3,
                              "stroke-dasharray": dashOf(p) });
      node(item, "span", {}, policy.name);
      item.addEventListener("click", () => {
        if (!off.delete(p)) off.add(p);
        redraw();
      });
    });
  }
}

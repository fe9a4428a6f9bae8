"use strict";
// The page of an online replay: reads the embedded document (schema lplb.report_online/1).

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const policies = data.policies;
const isEven = (p) => policies[p].solver === "even";
// One colour for a placement's name, whatever splits its tokens; even splits are dashed.
const names = [...new Set(policies.map((p) => p.placement))];
const colourOf = (p) => `var(--c${(names.indexOf(policies[p].placement) + 1) % 10})`;
const dashOf = (p) => (isEven(p) ? "7 4" : "");

const state = { log: false, off: new Set() };
const shown = () => policies.map((_, p) => p).filter((p) => !state.off.has(p));
const lastStep = (c) => (c + 1 < data.step.length ? data.step[c + 1] : data.steps) - 1;
const middle = (c) => (data.step[c] + lastStep(c)) / 2;
const pointAt = (x) => {
  let c = 0;
  while (c + 1 < data.step.length && data.step[c + 1] <= x) c++;
  return c;
};
const steps = (c) => `steps ${grouped(data.step[c])}\u2013${grouped(lastStep(c))}`;
const xAxis = (id) => ({
  x0: 0, x1: Math.max(1, data.steps - 1), xLabel: "step",
  xTicks: wholeTicks(0, Math.max(1, data.steps - 1), $(id).clientWidth / 90),
  xTickLabel: (t) => grouped(t),
});

function drawTime() {
  const list = shown();
  const high = Math.max(1.01, ...list.flatMap((p) => policies[p].imbalance.map((v) => v || 1)));
  const scale = imbalanceScale(high, state.log);
  lineChart($("time"), {
    height: 320, left: state.log ? 74 : 52, ...xAxis("time"),
    yLabel: "imbalance (max / mean load)",
    yTicks: scale.ticks.map((t) => ({ at: scale.at(t), label: scale.label(t) })),
    series: list.map((p) => ({
      colour: colourOf(p), dash: dashOf(p),
      points: policies[p].imbalance.map((v, c) => [middle(c), v]).filter((q) => q[1])
                                   .map((q) => [q[0], scale.at(q[1])]),
    })),
    tip: (x) => {
      const c = pointAt(x);
      return { x: middle(c), text: steps(c) + "\n" + list.map((p) => {
        const v = policies[p].imbalance[c];
        return `${policies[p].name}: ${v ? show(v) : "not measured"}`;
      }).join("\n") };
    },
  });
}

// Moves, in units of all slots, on a logarithmic scale whose foot is also zero.
function moveScale(list) {
  const all = list.flatMap((p) => policies[p].moves).filter((m) => m > 0)
                  .map((m) => m / data.slots);
  const low = Math.floor(Math.log10(Math.min(0.1, ...all)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(1, ...all))));
  const at = (m) => Math.max(0, (Math.log10(Math.max(m / data.slots, 1e-12)) - low) / (high - low));
  const marks = [];
  for (let e = low; e <= high; e++) {
    marks.push({ at: (e - low) / (high - low),
                 label: +(100 * 10 ** e).toPrecision(2) + "\u00a0%" });
  }
  return { at, marks };
}

function drawMoves() {
  const list = shown(), scale = moveScale(list);
  lineChart($("moves"), {
    height: 280, left: 74, ...xAxis("moves"), yLabel: "moves / all slots", yTicks: scale.marks,
    series: list.map((p) => ({
      colour: colourOf(p), dash: dashOf(p),
      points: policies[p].moves.map((m, c) => [lastStep(c), m]).filter((q) => q[1] > 0)
                               .map((q) => [q[0], scale.at(q[1])]),
    })),
    tip: (x) => {
      const c = pointAt(x);
      return { x: lastStep(c), text: `until step ${grouped(lastStep(c))}\n` + list.map((p) =>
        `${policies[p].name}: ${grouped(policies[p].moves[c])} moves`).join("\n") };
    },
  });
}

function drawTrade() {
  const list = shown(), target = clear($("trade"));
  const scale = moveScale(list);
  const means = list.map((p) => policies[p].mean).filter((m) => m > 0);
  if (!means.length) return;
  const low = Math.min(...means), high = Math.max(...means), room = (high - low) * 0.15 || 0.05;
  const width = Math.max(280, target.clientWidth), height = 320, left = 52, foot = 40, top = 22;
  const X = (m) => left + 8 + scale.at(m) * (width - left - 170);
  const Y = (v) => top + (high + room - v) / (high - low + 2 * room) * (height - top - foot);
  const svg = node(target, "svg:svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img",
                                        "aria-label": "mean imbalance against moves" });
  node(svg, "svg:text", { x: 0, y: 12 }, "mean imbalance");
  node(svg, "svg:text", { x: width - 14, y: height - 4, "text-anchor": "end" },
       "moves / all slots");
  for (const t of ticks(low - room, high + room, 5)) {
    node(svg, "svg:line", { x1: left, x2: width - 14, y1: Y(t), y2: Y(t), class: "grid" });
    node(svg, "svg:text", { x: left - 6, y: Y(t) + 4, "text-anchor": "end" }, show(t));
  }
  for (const m of scale.marks) {
    const x = left + 8 + m.at * (width - left - 170);
    node(svg, "svg:line", { x1: x, x2: x, y1: height - foot, y2: height - foot + 4,
                            class: "axis" });
    node(svg, "svg:text", { x, y: height - foot + 17, "text-anchor": "middle" }, m.label);
  }
  for (const p of list) {
    const policy = policies[p], moves = policy.moves[policy.moves.length - 1];
    if (!(policy.mean > 0)) continue;
    const x = X(moves), y = Y(policy.mean);
    node(svg, "svg:circle", { cx: x, cy: y, r: 5, stroke: colourOf(p), "stroke-width": 2.5,
                              fill: isEven(p) ? "none" : colourOf(p) });
    node(svg, "svg:text", { x: x + 10, y: y + 4 }, policy.name);
  }
}

function draw() {
  hideTip();
  drawLegends(policies, state.off, colourOf, dashOf, draw);
  drawTime();
  drawMoves();
  drawTrade();
}

$("time-note").textContent = `Mean over the layers and about ` +
  `${grouped(Math.max(1, Math.round(data.steps / data.step.length)))} steps a point. `;
$("log").addEventListener("change", () => { state.log = $("log").checked; draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = window.innerWidth; // a phone's address bar changes the height only
window.addEventListener("resize", () => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  draw();
});
draw();

"use strict";
// The page: reads the embedded document (schema lplb.report/1) and draws its charts.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const policies = data.policies;
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const colourOf = (p) => `var(--c${p % 10})`;
const dashOf = (p) => DASHES[Math.floor(p / 10) % DASHES.length];
const layerName = (row) => data.first_layer + row;

const state = { a: data.baseline, b: data.best, detail: data.worst_detail, timeLayer: -1,
                log: false, off: new Set() };

// Columns are groups of measured batches; [first, last] 0-based.
function columnBatches(c) {
  const first = Math.floor(c * data.measured / data.columns);
  return [first, Math.floor((c + 1) * data.measured / data.columns) - 1];
}
function batchText(c) {
  const [first, last] = columnBatches(c);
  return first === last ? `batch ${first}` : `batches ${first}\u2013${last}`;
}

const shown = () => policies.map((_, p) => p).filter((p) => !state.off.has(p));

function drawTime() {
  const pick = (p) =>
    (state.timeLayer < 0 ? policies[p] : policies[p].detail[state.timeLayer]).time;
  const list = shown().filter((p) => pick(p));
  const high = Math.max(1.01, ...list.flatMap((p) => pick(p).map((v) => v || 1)));
  const scale = imbalanceScale(high, state.log);
  const middle = (c) => { const [f, l] = columnBatches(c); return (f + l) / 2; };
  lineChart($("time"), {
    height: 300, left: state.log ? 74 : 52, x0: 0, x1: Math.max(1, data.measured - 1),
    xTicks: wholeTicks(0, Math.max(1, data.measured - 1), $("time").clientWidth / 90),
    xLabel: "measured batch", yLabel: "imbalance (max / mean load)",
    yTicks: scale.ticks.map((t) => ({ at: scale.at(t), label: scale.label(t) })),
    series: list.map((p) => ({
      colour: colourOf(p), dash: dashOf(p),
      points: pick(p).map((v, c) => [middle(c), v]).filter((q) => q[1] > 0)
                     .map((q) => [q[0], scale.at(q[1])]),
    })),
    tip: (x) => {
      const c = Math.max(0, Math.min(data.columns - 1,
                                     Math.floor((x + 0.5) * data.columns / data.measured)));
      return { x: middle(c), text: batchText(c) + "\n" + list.map((p) =>
        `${policies[p].name}: ${pick(p)[c] ? show(pick(p)[c]) : "no load"}`).join("\n") };
    },
  });
}

function drawEcdf() {
  const list = shown().filter((p) => policies[p].quantiles.length);
  const high = Math.max(1.01, ...list.map((p) => policies[p].quantiles.slice(-1)[0]));
  const scale = imbalanceScale(high, state.log);
  lineChart($("ecdf"), {
    height: 280, x0: 0, x1: 1, xTicks: scale.ticks.map((t) => scale.at(t)),
    xTickLabel: (at) => scale.label(scale.ticks.find((t) => scale.at(t) === at)),
    xLabel: "imbalance (max / mean load)", yLabel: "share of (layer, batch) pairs",
    yTicks: [0, 0.25, 0.5, 0.75, 1].map((s) => ({ at: s, label: 100 * s + " %" })),
    series: list.map((p) => {
      const q = policies[p].quantiles, points = [[Math.max(0, scale.at(q[0])), 0]];
      q.forEach((v, i) => points.push([Math.max(0, scale.at(v)), (i + 1) / q.length]));
      return { colour: colourOf(p), dash: dashOf(p), points };
    }),
    tip: (x) => {
      const value = (v) => Math.max(0, scale.at(v)) <= x;
      const share = (q) => q.filter(value).length / q.length;
      return { x, text: "pairs up to here\n" + list.map((p) =>
        `${policies[p].name}: ${percent(share(policies[p].quantiles))}`).join("\n") };
    },
  });
}

// Two characters of this alphabet a cell: 4,096 steps of 1/512 of the mean load.
const DIGITS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
function heatValue(text, index) {
  return (DIGITS.indexOf(text[2 * index]) * 64 + DIGITS.indexOf(text[2 * index + 1])) / 512;
}

function drawHeat() {
  const rows = data.heat_rows, firstRank = (row) => Math.floor(row * data.ranks / rows);
  let any = false;
  for (const side of ["a", "b"]) {
    const target = clear($("heat-" + side)), text = policies[state[side]].detail[state.detail].heat;
    if (!text) {
      node(target, "p", { class: "note" }, "This policy has no loads by rank.");
      continue;
    }
    any = true;
    const rankText = (r) => {
      const first = firstRank(r), last = firstRank(r + 1) - 1;
      return first === last ? String(first) : `${first}\u2013${last}`;
    };
    heatMap(target, rows, data.columns, (r, c) => heatValue(text, r * data.columns + c), {
      rowLabel: (r) => String(firstRank(r)),
      tip: (r, c) => `rank ${rankText(r)}, ${batchText(c)}\n` +
                     `${show(heatValue(text, r * data.columns + c))} \u00d7 mean load`,
    });
  }
  const colour = divergingColours();
  $("heat-scale").style.background =
    `linear-gradient(90deg, ${colour(0)}, ${colour(1)}, ${colour(2)})`;
  $("heat-section").hidden = !any && !policies.some((p) => p.detail[0].heat);
}

function drawLayers() {
  const sides = state.a === state.b ? [state.a] : [state.a, state.b];
  const legend = clear($("layer-legend"));
  for (const p of sides) {
    const item = node(legend, "span", {});
    node(item, "span", { class: "key", style: `background:${colourOf(p)}` });
    node(item, "span", {}, policies[p].name);
  }
  const groups = policies[0].layer_mean.map((_, row) => ({
    label: layerName(row),
    bars: sides.map((p) => policies[p])
               .map((policy) => ({ mean: policy.layer_mean[row], max: policy.layer_max[row] })),
  }));
  const high = Math.max(1.01, ...groups.flatMap((g) => g.bars.map((b) => b.max)));
  groupedBars($("layers"), groups, sides.map(colourOf), high, state.log, (g) =>
    `layer ${groups[g].label}\n` + sides.map((p, i) => {
      const bar = groups[g].bars[i];
      return `${policies[p].name}: ` +
             (bar.mean > 0 ? `mean ${show(bar.mean)}, worst batch ${show(bar.max)}` : "no load");
    }).join("\n"));
}

function drawCost() {
  const target = clear($("cost"));
  const panel = (title, read, format) => {
    if (!policies.some((p) => read(p) !== null && read(p) !== undefined)) return;
    const box = node(target, "div", {});
    node(box, "h3", {}, title);
    rowBars(box, policies.map((p, i) => {
      const value = read(p);
      const known = value !== null && value !== undefined;
      return { name: p.name, value: known ? value : null, text: known ? format(value, p) : "\u2013",
               colour: colourOf(i) };
    }));
  };
  const bytes = (b) => (b >= 2 ** 30 ? show(b / 2 ** 30) + " GiB" : show(b / 2 ** 20) + " MiB");
  panel("Plan time a layer and batch: median (p99)", (p) => p.plan_us && p.plan_us.p50,
        (v, p) => `${show(v)} (${show(p.plan_us.p99)}) \u00b5s`);
  panel("Time to compute the placement", (p) => (p.placed ? p.place_seconds : null),
        duration);
  panel("Selections served off their source rank",
        (p) => (p.placed && data.topk ? p.moved_tokens / Math.max(1, data.selections) : null),
        percent);
  panel("Selections served off their source node",
        (p) => (p.placed && data.topk && data.nodes > 1
          ? p.internode_tokens / Math.max(1, data.selections) : null), percent);
  panel("Moves from the contiguous placement", (p) => (p.placed ? p.moved_slots : null),
        (v, p) => `${grouped(v)} of ${grouped(p.slots * data.layers)} slots`);
  panel("Memory of the redundant copies, all ranks",
        (p) => p.predicted && p.predicted.redundant_bytes, bytes);
  panel("Predicted time of a MoE layer", (p) => p.predicted && p.predicted.ms_per_layer,
        (v) => show(v) + " ms");
  panel("Predicted tokens a second", (p) => p.predicted && p.predicted.tokens_per_s,
        (v) => grouped(Math.round(v)));
}

function fillTable(target, heads, rows) {
  const table = node(clear(target), "table", { class: "words" });
  const head = node(node(table, "thead", {}), "tr", {});
  heads.forEach((h) => node(head, "th", {}, h));
  const body = node(table, "tbody", {});
  rows.forEach((row) => {
    const line = node(body, "tr", {});
    row.forEach((cell) => node(line, "td", {}, cell));
  });
}

function drawLimits() {
  const policy = policies[state.b], limits = policy.limits;
  clear($("limits-sets"));
  clear($("limits-replicas"));
  const replicas = limits && limits.replicas.length;
  $("replica-title").hidden = $("replica-title").nextElementSibling.hidden = !replicas;
  if (!limits) {
    $("limits-text").textContent = "This policy has no placement that could be analysed.";
    return;
  }
  const lost = Math.max(0, limits.imbalance - limits.bound);
  $("limits-text").textContent =
    `In ${percent(limits.limited / Math.max(1, limits.pairs))} of the ${grouped(limits.pairs)} ` +
    "(layer, batch) pairs a set of ranks holds experts that live nowhere else and that brought " +
    "it more than its share, so no split can be even. Of the mean imbalance of " +
    `${show(limits.imbalance)}, ${percent(Math.max(0, limits.bound - 1))} is the placement's ` +
    `doing and ${percent(lost)} the split's.` +
    (limits.sets.length ? ` The sets that bind most often, ${limits.sets.length} of ` +
                          `${grouped(limits.n_sets)}:` : "");
  const list = (all, n) => all.slice(0, n).join(", ") + (all.length > n ? ", \u2026" : "");
  if (limits.sets.length) {
    fillTable($("limits-sets"), ["Layer", "Ranks of the set", "Experts only there, hottest first",
                                 "Batches where it binds", "Mean excess there"],
              limits.sets.map((s) => [layerName(s.layer), list(s.ranks, 16),
                                      list(s.experts, 12) + (s.n_experts > s.experts.length
                                        ? ` (${s.n_experts} in all)` : ""),
                                      grouped(s.pairs), percent(s.excess)]));
  }
  if (replicas) {
    fillTable($("limits-replicas"), ["Layer", "Copy expert", "to rank", "Before", "After"],
              limits.replicas.map((r) => [layerName(r.layer), r.expert, r.rank, show(r.before),
                                          show(r.after)]));
  }
}

// Black or white text, whichever reads better on the colour (relative luminance as in WCAG).
function onColour(rgb) {
  const [r, g, b] = rgb.match(/\d+/g).map((v) => Math.pow(v / 255, 2.2));
  const light = 0.2126 * r + 0.7152 * g + 0.0722 * b;
  return `background:${rgb};color:${light > 0.18 ? "#111" : "#fff"}`;
}

function rankSets(policy) {
  const slots = policy.detail[state.detail].slots, sets = [];
  for (let r = 0; r < data.ranks; r++) {
    sets.push(new Set(slots.slice(policy.rank_offset[r], policy.rank_offset[r + 1])));
  }
  return sets;
}

function drawPlacement(side, other) {
  const policy = policies[state[side]], target = clear($("place-" + side));
  const detail = policy.detail[state.detail];
  if (!detail.slots) {
    node(target, "p", { class: "note" }, "This policy has no placement.");
    return null;
  }
  const tokens = data.expert_tokens[state.detail];
  const total = tokens.reduce((a, b) => a + b, 0), mean = total / tokens.length || 1;
  const copies = tokens.map(() => 0);
  detail.slots.forEach((e) => { if (e >= 0) copies[e]++; });
  const colour = divergingColours();
  const opposite = policies[state[other]];
  const theirs = opposite.detail[state.detail].slots ? rankSets(opposite) : null;
  let different = 0;
  for (let r = 0; r < data.ranks; r++) {
    const box = node(target, "div", { class: "rank" }), head = node(box, "p", {});
    node(head, "span", {}, "rank " + r);
    if (detail.rank_load) node(head, "span", {}, show(detail.rank_load[r]) + " \u00d7 mean");
    const slots = node(box, "div", { class: "slots" });
    for (let s = policy.rank_offset[r]; s < policy.rank_offset[r + 1]; s++) {
      const e = detail.slots[s];
      if (e < 0) {
        node(slots, "span", { title: "empty slot" }, "\u2013");
        continue;
      }
      const isNew = theirs && !theirs[r].has(e);
      if (isNew) different++;
      node(slots, "span", {
        class: isNew ? "new" : "", style: onColour(colour(1 + (tokens[e] / mean - 1) / 3)),
        title: `expert ${e}: ${percent(total ? tokens[e] / total : 0)} of the layer's load, ` +
               `${copies[e]} ${copies[e] === 1 ? "copy" : "copies"}`,
      }, e);
    }
  }
  return theirs ? { different, slots: detail.slots.filter((e) => e >= 0).length } : null;
}

function drawPlacements() {
  if (!data.expert_tokens.length) {
    $("place-section").hidden = true;
    return;
  }
  drawPlacement("a", "b");
  const answer = drawPlacement("b", "a");
  $("place-note").textContent = "Slots of every rank by expert number; the figure of a rank is " +
    "its mean load over the measured batches. " + (answer
      ? `${grouped(answer.different)} of the ${grouped(answer.slots)} slots of ` +
        `${policies[state.b].name} would have to be filled if the present placement were ` +
        `${policies[state.a].name}.` : "");
  const colour = divergingColours();
  $("place-scale").style.background =
    `linear-gradient(90deg, ${colour(2 / 3)}, ${colour(1)}, ${colour(2)})`;
}

function drawNotes() {
  const several = data.columns < data.measured;
  $("time-note").textContent = several
    ? `${grouped(data.measured)} measured batches in ${data.columns} points, each a mean.` : "";
  $("heat-note").textContent = "One row a rank, one column a batch: load over the batch's mean" +
    (several ? "; a column shows the highest of several batches." : ".") +
    (data.heat_rows < data.ranks
      ? ` ${data.ranks} ranks in ${data.heat_rows} rows, the highest of each row's ranks.` : "");
  $("cost-note").textContent = data.topk
    ? "" : "The trace holds counts, not tokens: where a selection came from is unknown.";
  for (const span of document.querySelectorAll("[data-layer]")) {
    span.textContent = layerName(data.detail_rows[state.detail]);
  }
  for (const side of ["a", "b"]) {
    for (const span of document.querySelectorAll(`[data-name="${side}"]`)) {
      span.textContent = policies[state[side]].name;
    }
  }
}

function draw() {
  drawNotes();
  drawLegends(policies, state.off, colourOf, dashOf, draw);
  drawTime();
  drawEcdf();
  drawHeat();
  drawLayers();
  drawCost();
  drawLimits();
  drawPlacements();
}

function fillSelect(select, names, value, onChange) {
  names.forEach((name, i) => node(select, "option", { value: i }, name));
  select.value = value;
  select.addEventListener("change", () => { onChange(+select.value); draw(); });
}

function start() {
  const bar = node(null, "div", { id: "controls" }), row = node(bar, "div", {});
  document.querySelector("header").after(bar);
  const field = (text, names, value, onChange) => {
    const label = node(row, "label", {}, text + " ");
    fillSelect(node(label, "select", {}), names, value, onChange);
  };
  const names = policies.map((p) => p.name);
  field("Compare", names, state.a, (v) => { state.a = v; });
  field("with", names, state.b, (v) => { state.b = v; });
  field("in layer", data.detail_rows.map(layerName), state.detail, (v) => { state.detail = v; });
  const theme = node(row, "button", { id: "theme", type: "button" }, "Light / dark");
  theme.addEventListener("click", () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark"
                                    : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    draw();
  });
  fillSelect($("time-layer"), ["the mean of all layers"].concat(
    data.detail_rows.map((r) => "layer " + layerName(r))), 0, (v) => { state.timeLayer = v - 1; });
  $("log").addEventListener("change", () => { state.log = $("log").checked; draw(); });
  if (data.detail_rows.length < data.layers) {
    node(row, "span", { class: "note", style: "margin:0" },
         `details of the ${data.detail_rows.length} most uneven of ${data.layers} layers`);
  }
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = window.innerWidth; // a phone's address bar changes the height only
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    draw();
  });
  draw();
}

start();

"use strict";
// Curves over training, scatter, and parallel coordinates, of the cells that the filter leaves.
const MOST_CURVES = 400, MOST_LINES = 1000, MOST_LEVELS = 12, MANY_POINTS = 4000;
// Steps of viridis for what is ordered: the same colours as in the figures.
const viridis = [[68,1,84],[72,40,120],[62,73,137],[49,104,142],[38,130,142],[31,158,137],[53,183,121],[109,205,89],[180,222,44]];
const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star", "hexagon"];
const dark = matchMedia("(prefers-color-scheme: dark)");
const control = id => document.getElementById(id);

function shade(share, alpha = 1) {
  // Neither end may vanish in the background.
  const at = (dark.matches ? 0.3 + 0.7 * share : 0.92 * share) * (viridis.length - 1), low = Math.floor(at), high = Math.min(low + 1, viridis.length - 1);
  return `rgba(${viridis[low].map((v, k) => Math.round(v + (viridis[high][k] - v) * (at - low))).join(",")},${alpha})`;
}
const scale = () => [...Array(11).keys()].map(k => [k / 10, shade(k / 10)]);

// How a column colours cells: by a few levels, or, of a number with many values, along a scale.
function colouring(column, cells) {
  const values = sweep.rows[column] ?? [], there = cells.filter(cell => values[cell] !== "" && !Number.isNaN(values[cell]));
  let levels = [...new Set(there.map(cell => values[cell]))];
  if (isNumber(column)) levels.sort((a, b) => a - b);
  else if (column === "size") levels.sort((a, b) => parametersOf(a) - parametersOf(b));
  else levels.sort();
  if (levels.length > MOST_LEVELS && isNumber(column)) {
    const low = levels[0], high = levels[levels.length - 1];
    return { scale: { low, high }, levels: [], of: cell => Number.isNaN(values[cell]) ? "#888888" : shade((values[cell] - low) / (high - low)), level: () => 0 };
  }
  const place = new Map(levels.map((level, k) => [level, k])), share = k => levels.length > 1 ? k / (levels.length - 1) : 0.35;
  return { levels, of: cell => place.has(values[cell]) ? shade(share(place.get(values[cell]))) : "#888888", level: cell => place.get(values[cell]) ?? -1, shade: (k, alpha) => shade(share(k), alpha) };
}
function parametersOf(size) {
  const cell = sweep.rows.size?.indexOf(size) ?? -1;
  return cell < 0 ? NaN : sweep.rows.parameters[cell];
}

function layout(x, y, more = {}) {
  const style = getComputedStyle(document.documentElement), ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim();
  const axis = (title, log) => ({ title: { text: escaped(title) }, zeroline: false, gridcolor: line, linecolor: line, type: log ? "log" : "linear", automargin: true });
  const narrow = innerWidth < 640;
  return { margin: { l: narrow ? 48 : 70, r: 16, t: 40, b: 56 }, xaxis: axis(x, more.logX), yaxis: axis(y, more.logY), hovermode: "closest", font: { size: 13, color: ink, family: "system-ui, sans-serif" },
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", legend: narrow ? { orientation: "h", y: -0.25 } : { orientation: "v" }, showlegend: true, uirevision: more.revision };
}
const hasWebGL = Boolean(document.createElement("canvas").getContext("webgl"));
const config = { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d", "sendChartToCloud"] };
const escaped = text => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const legendOf = column => ({ text: escaped(named(column)) });
function about(cell) {
  return `<b>${escaped(sweep.rows.id[cell])}</b><br>` + (source.live ? `${escaped(sweep.rows.state[cell])}<br>` : "") +
    ofKind("setting").slice(0, 10).map(([name, label]) => `${escaped(label)} ${escaped(shown(sweep.rows[name][cell]))}`).join("<br>");
}
function say(id, text) { control(id).textContent = text; }
const cells_with = (count, one, several) => `${count.toLocaleString("en-US")} ${count === 1 ? "cell " + one : "cells " + several}`;
function scaleBar(colour, column) {
  return { type: "scatter", mode: "markers", x: [null], y: [null], showlegend: false, hoverinfo: "skip", marker: { color: [colour.scale.low, colour.scale.high], colorscale: scale(), showscale: true, colorbar: { title: { text: escaped(named(column)) }, thickness: 12 } } };
}

function drawScatter(order) {
  const x = control("x").value, y = control("y").value, by = control("colour").value;
  if (!x || !y) return say("scatter_said", "There are no two numbers yet.");
  const fits = (value, log) => !Number.isNaN(value) && !(log && value <= 0);
  const cells = order.filter(cell => fits(sweep.rows[x][cell], control("log_x").checked) && fits(sweep.rows[y][cell], control("log_y").checked));
  const colour = colouring(by, cells), type = hasWebGL && cells.length > MANY_POINTS ? "scattergl" : "scatter";
  const trace = (name, k, of) => ({ type, mode: "markers", name: escaped(name), x: of.map(cell => sweep.rows[x][cell]), y: of.map(cell => sweep.rows[y][cell]),
    text: of.map(cell => `${about(cell)}<br>${escaped(named(x))} ${shown(sweep.rows[x][cell])}<br>${escaped(named(y))} ${shown(sweep.rows[y][cell])}`), hoverinfo: "text",
    marker: { size: cells.length > 1000 ? 6 : 9, color: colour.scale ? of.map(cell => sweep.rows[by][cell]) : of.map(colour.of), symbol: of.map(cell => symbols[Math.max(0, k) % symbols.length] + (isOver(cell) ? "" : "-open")),
      line: { width: cells.length > 1000 ? 0 : 0.8 }, ...(colour.scale ? { colorscale: scale(), showscale: true, colorbar: { title: { text: escaped(named(by)) }, thickness: 12 } } : {}) } });
  const traces = colour.scale ? [trace("", 0, cells)] : colour.levels.map((level, k) => trace(shown(level), k, cells.filter(cell => colour.level(cell) === k)));
  const without = cells.filter(cell => !colour.scale && colour.level(cell) < 0);
  if (without.length) traces.push(trace("none", 0, without));
  const drawn = layout(named(x), named(y), { logX: control("log_x").checked, logY: control("log_y").checked, revision: [x, y, by, control("log_x").checked, control("log_y").checked].join() });
  drawn.legend.title = legendOf(by);
  drawn.showlegend = !colour.scale;
  Plotly.react("scatter", traces, drawn, config);
  const open = cells.filter(cell => !isOver(cell)).length, lacking = order.length - cells.length;
  say("scatter_said", (lacking ? `${cells_with(lacking, "has", "have")} no such numbers${control("log_x").checked || control("log_y").checked ? ", or none that a log axis can show" : " yet"}. ` : "") + (open ? `Hollow: ${cells_with(open, "that is", "that are")} not finished, by their last report.` : ""));
}

// The mean of what came before, the newer the heavier, as TensorBoard smooths.
function smoothed(values, weight) {
  let last = 0;
  return values.map((value, i) => (last = weight * last + (1 - weight) * value) / (1 - weight ** (i + 1)));
}

function xOf(curve, cell, x) {
  if (x === "share") return curve.step.map(step => step / sweep.rows.steps[cell]);
  return x === "tokens" ? curve.tokens : curve.step;
}

let asked = 0;
async function drawCurves(order) {
  const column = control("curve").value, x = control("curve_x").value, by = control("curve_colour").value, weight = Number(control("smooth").value), bands = control("bands").checked;
  const begun = order.filter(cell => sweep.rows.share[cell] > 0), cells = begun.slice(0, MOST_CURVES), mine = ++asked;
  let curves;
  say("curves_said", "Reading the curves…");
  try {
    curves = await curvesOf(column, cells);
  } catch (error) {
    say("curves_said", `The curves cannot be read: ${error.message}`);
    setTimeout(() => redraw("curves"), 5000);
    return;
  }
  if (mine !== asked) return;
  const colour = colouring(by, cells), lines = new Map();
  const lineOf = k => {
    if (!lines.has(k)) lines.set(k, { x: [], y: [], text: [], fill: { x: [], y: [] } });
    return lines.get(k);
  };
  let without = 0;
  const groups = new Map();
  cells.forEach((cell, i) => {
    if (!curves[i].value.length) { without++; return; }
    // Seeds that differ in what colours them are lines of their own.
    const key = bands && !colour.scale ? `${sweep.rows.configuration[cell]} ${colour.level(cell)}` : cell;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push([cell, curves[i]]);
  });
  // A scale has no levels: every line is a trace of its own colour.
  const key = cell => colour.scale ? cell : colour.level(cell);
  for (const members of groups.values()) {
    const [cell] = members[0], line = lineOf(key(cell));
    let at, values;
    if (members.length === 1) {
      at = xOf(members[0][1], cell, x);
      values = smoothed(members[0][1].value, weight);
    } else {
      const spread = new Map();
      for (const [member, curve] of members) {
        const one = smoothed(curve.value, weight), places = xOf(curve, member, x);
        places.forEach((place, i) => spread.has(place) ? spread.get(place).push(one[i]) : spread.set(place, [one[i]]));
      }
      // Where not all seeds are there the mean would jump.
      const most = Math.max(...[...spread.values()].map(of => of.length)), places = [...spread].filter(([, of]) => of.length === most).sort((a, b) => a[0] - b[0]);
      at = places.map(([place]) => place);
      values = places.map(([, of]) => of.reduce((a, b) => a + b, 0) / of.length);
      line.fill.x.push(...at, ...at.toReversed(), null);
      line.fill.y.push(...places.map(([, of]) => Math.max(...of)), ...places.map(([, of]) => Math.min(...of)).toReversed(), null);
    }
    const text = about(cell) + (members.length > 1 ? `<br>mean of ${members.length} seeds` : "");
    line.x.push(...at, null);
    line.y.push(...values, null);
    line.text.push(...at.map(() => text), "");
  }
  const kinds = [...lines.keys()].sort((a, b) => a - b), points = kinds.reduce((sum, k) => sum + lines.get(k).x.length, 0), type = hasWebGL && points > 20000 ? "scattergl" : "scatter";
  const traces = [];
  for (const k of kinds) {
    const line = lines.get(k), name = colour.scale ? "" : k < 0 ? "none" : shown(colour.levels[k]), paint = alpha => colour.scale ? colour.of(k) : k < 0 ? "#888888" : colour.shade(k, alpha);
    if (line.fill.x.length && !colour.scale) traces.push({ type: "scatter", mode: "lines", fill: "toself", x: line.fill.x, y: line.fill.y, line: { width: 0 }, fillcolor: paint(0.2), hoverinfo: "skip", showlegend: false, legendgroup: name });
    traces.push({ type, mode: points / Math.max(1, groups.size) < 2.5 ? "lines+markers" : "lines", name: escaped(name), legendgroup: name, showlegend: !colour.scale, x: line.x, y: line.y, text: line.text,
      hovertemplate: "%{text}<br>%{x:.4s}: %{y:.5g}<extra></extra>", line: { color: paint(1), width: 1.4 } });
  }
  if (colour.scale) traces.push(scaleBar(colour, by));
  const label = (sweep.curveColumns.find(([name]) => name === column) ?? [, column])[1], axes = { step: "steps", tokens: "tokens", share: "share of the training" };
  const drawn = layout(axes[x], label, { logX: control("curve_log_x").checked, logY: control("curve_log_y").checked, revision: [column, x, control("curve_log_x").checked, control("curve_log_y").checked].join() });
  drawn.legend.title = legendOf(by);
  Plotly.react("curves", traces, drawn, config);
  const notes = [];
  if (begun.length > cells.length) notes.push(`${cells.length} of ${begun.length.toLocaleString("en-US")} curves are drawn, the first in the table's order: filter or sort it for others.`);
  if (without) notes.push(`${without} cells have no ${label} over training${source.live ? ", or not yet" : ""}.`);
  if (bands && colour.scale) notes.push("No bands: what colours the lines has too many values.");
  else if (bands) notes.push("Bands: from the lowest seed to the highest, around their mean, where all seeds are there.");
  if (weight) notes.push("Smoothed: hover shows smoothed numbers.");
  say("curves_said", notes.join(" "));
}

function drawParallel(order) {
  const outcome = control("outcome").value;
  if (!outcome) return say("parallel_said", "There is no outcome yet.");
  const settings = ofKind("setting").map(([name]) => name).slice(0, innerWidth < 640 ? 4 : 10);
  const having = order.filter(cell => !Number.isNaN(sweep.rows[outcome][cell])), cells = having.slice(0, MOST_LINES);
  const dimensions = [...settings, outcome].map(name => {
    const values = sweep.rows[name], levels = [...new Set(cells.map(cell => values[cell]))].sort((a, b) => isNumber(name) ? a - b : String(a).localeCompare(String(b)));
    // Few levels of a setting stand at equal distances; a number that is not there has a place of its own.
    if (name !== outcome && (levels.length <= MOST_LEVELS || !isNumber(name))) {
      const place = new Map(levels.map((level, k) => [Object.is(level, NaN) ? "none" : level, k]));
      return { name, label: escaped(short(name).slice(0, innerWidth < 640 ? 16 : 28)), values: cells.map(cell => place.get(Number.isNaN(values[cell]) ? "none" : values[cell])), tickvals: [...place.values()], ticktext: [...place.keys()].map(level => shown(level).slice(0, 18)) };
    }
    return { name, label: escaped(short(name).slice(0, innerWidth < 640 ? 16 : 28)), values: cells.map(cell => values[cell]) };
  }).filter(dimension => new Set(dimension.values).size > 1 || dimension.name === outcome);
  const values = cells.map(cell => sweep.rows[outcome][cell]), drawn = layout("", "");
  drawn.margin = { l: 60, r: 70, t: 70, b: 24 };
  const trace = { type: "parcoords", labelangle: dimensions.length > 5 || innerWidth < 640 ? -18 : 0, dimensions, line: { color: values, colorscale: scale(), showscale: true, colorbar: { thickness: 12 } }, labelfont: { size: 12 }, tickfont: { size: 11, color: drawn.font.color } };
  Plotly.react("parallel", cells.length ? [trace] : [], drawn, config);
  const lacking = order.length - having.length, more = ofKind("setting").length - settings.length;
  say("parallel_said", (more ? `The first ${settings.length} of ${settings.length + more} settings are shown. ` : "") + (having.length > cells.length ? `${cells.length} of ${having.length.toLocaleString("en-US")} cells are drawn, the first in the table's order. ` : "") + (lacking ? `${cells_with(lacking, "has", "have")} no ${named(outcome)} yet: not drawn.` : ""));
}

// Plots are drawn when they are looked at, and again when what they show has changed.
const plots = { curves: drawCurves, scatter: drawScatter, parallel: drawParallel };
const stale = new Set(Object.keys(plots)), inView = new Set();
let drawing = false;
function drawPlots() {
  if (drawing || !window.Plotly || !sweep.version || document.hidden) return;
  drawing = true;
  requestAnimationFrame(() => {
    drawing = false;
    // One at a time, so that the page answers in between.
    const due = [...stale].find(name => inView.has(name));
    if (due === undefined) return;
    stale.delete(due);
    setTimeout(drawPlots);
    plots[due](visible());
  });
}
const watching = new IntersectionObserver(entries => {
  for (const entry of entries) entry.isIntersecting ? inView.add(entry.target.id) : inView.delete(entry.target.id);
  drawPlots();
}, { rootMargin: "200px" });
for (const name of Object.keys(plots)) watching.observe(control(name));
function redraw(...names) {
  for (const name of names.length ? names : Object.keys(plots)) stale.add(name);
  drawPlots();
}
dark.addEventListener("change", () => redraw());
window.addEventListener("beforeprint", () => { for (const name of Object.keys(plots)) inView.add(name); redraw(); });
document.getElementById("plotly")?.addEventListener("load", () => redraw());

const OF_PLOT = { x: "scatter", y: "scatter", colour: "scatter", log_x: "scatter", log_y: "scatter", curve: "curves", curve_x: "curves", curve_colour: "curves", smooth: "curves", bands: "curves", curve_log_x: "curves", curve_log_y: "curves", outcome: "parallel" };
function fillControls() {
  const metrics = ofKind("metric"), losses = ofKind("loss"), others = ofKind("other").filter(([name]) => isNumber(name)), settings = ofKind("setting", "derived").filter(([name]) => isNumber(name));
  const wanted = sweep.defaults;
  fill(control("x"), [...metrics, ...losses, ...settings, ...others], wanted.x);
  fill(control("y"), [...losses, ...metrics, ...settings, ...others], wanted.y);
  fill(control("outcome"), [...losses, ...metrics, ...others], wanted.y);
  fill(control("curve"), sweep.curveColumns, wanted.curve);
  for (const id of ["colour", "curve_colour"]) fill(control(id), [...ofKind("setting", "cell").filter(([name]) => name !== "id"), ...losses, ...metrics], id === "colour" ? wanted.colour : wanted.curve_colour);
}
for (const [id, plot] of Object.entries(OF_PLOT)) {
  const element = control(id), isTick = element.type === "checkbox", before = chosen.controls[id];
  if (before !== undefined && element.tagName !== "SELECT") isTick ? element.checked = before : element.value = before;
  element.addEventListener(element.type === "range" ? "input" : "change", () => {
    chosen.controls[id] = isTick ? element.checked : element.value;
    remember();
    redraw(plot);
  });
}

// After the filter or the order has changed.
let filterTimer = 0;
function changedView() {
  remember();
  clearTimeout(filterTimer);
  filterTimer = setTimeout(() => {
    drawCells();
    redraw();
  }, 120);
}

let filterColumns = "";
function show() {
  // The columns of filters, but not under somebody's hands.
  const names = [...sweep.columns.keys()].join();
  if (names !== filterColumns && !document.getElementById("filters").contains(document.activeElement)) {
    filterColumns = names;
    drawFilters();
  }
  if (document.getElementById("cell").open) fillDialog();
  fillControls();
  drawChooser();
  drawCells();
  redraw();
}

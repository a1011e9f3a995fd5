"use strict";
// What the page knows: one row a cell, kept as columns. It comes from a server that reads the store, or is frozen into a report.
const sweep = { columns: new Map(), curveColumns: [], rows: {}, count: 0, version: 0, epoch: "", defaults: {} };

function columnsOf(bytes) {
  const table = fl.tableFromIPC(bytes), columns = {};
  for (const field of table.schema.fields) columns[field.name] = table.getChild(field.name).toArray();
  return columns;
}

// Of a server: rows that changed since a version, and curves of chosen cells.
function served() {
  async function ask(path, body) {
    const options = body === undefined ? {} : { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) };
    const answer = await fetch(path, { ...options, signal: AbortSignal.timeout(60000) });
    if (!answer.ok) throw new Error((await answer.text()).slice(0, 300) || "answer " + answer.status);
    return answer;
  }
  return {
    live: true,
    state: async () => (await ask(`state?have=${sweep.epoch}-${sweep.version}`)).json(),
    verdicts: async () => (await ask("verdicts")).text(),
    async cells(since) {
      return columnsOf(new Uint8Array(await (await ask("cells?since=" + since)).arrayBuffer()));
    },
    async curves(column, cells) {
      return byCell(columnsOf(new Uint8Array(await (await ask("curves", { column, cells })).arrayBuffer())), "value");
    },
  };
}

function frozenInto(element) {
  const content = JSON.parse(element.textContent);
  const unpack = text => columnsOf(Uint8Array.from(atob(text), letter => letter.charCodeAt(0)));
  const curves = unpack(content.curves);
  return { live: false, state: async () => content, cells: async () => unpack(content.cells), curves: async column => byCell(curves, column) };
}

// Cell -> its steps, tokens and values; rows of one cell stand together.
function byCell(rows, column) {
  const found = new Map(), cells = rows.cell, values = rows[column];
  for (let start = 0; start < cells.length;) {
    let end = start;
    while (end < cells.length && cells[end] === cells[start]) end++;
    const kept = [];
    for (let i = start; i < end; i++) if (!Number.isNaN(values[i])) kept.push(i);
    found.set(cells[start], { step: kept.map(i => rows.step[i]), tokens: kept.map(i => rows.tokens[i]), value: kept.map(i => values[i]) });
    start = end;
  }
  return found;
}

const source = document.getElementById("frozen") ? frozenInto(document.getElementById("frozen")) : served();

// Take in what a state and rows say; whether anything changed.
async function take(state) {
  // Another process answers, perhaps of another sweep: nothing of the old one may stay.
  if (sweep.epoch && state.epoch !== sweep.epoch) { location.reload(); return false; }
  Object.assign(sweep, { epoch: state.epoch, count: state.count });
  if (state.version === sweep.version) return false;
  const rows = await source.cells(sweep.version), at = rows.row;
  for (const [name, values] of Object.entries(rows)) {
    if (at.length === sweep.count) { sweep.rows[name] = values; continue; }
    for (let i = 0; i < at.length; i++) sweep.rows[name][at[i]] = values[i];
  }
  sweep.columns = new Map(state.columns.map(([name, label, kind, number]) => [name, { label, kind, number }]));
  sweep.curveColumns = state.curve_columns;
  sweep.defaults = state.defaults;
  sweep.version = state.version;
  return true;
}

// Column -> cell -> its curve, and the version of the row that it was fetched for.
const curveCache = new Map();
async function curvesOf(column, cells) {
  if (!curveCache.has(column)) curveCache.set(column, new Map());
  const known = curveCache.get(column), changed = sweep.rows.changed;
  const missing = cells.filter(cell => known.get(cell)?.changed !== changed[cell]);
  if (missing.length) {
    const versions = missing.map(cell => changed[cell]), found = await source.curves(column, missing);
    missing.forEach((cell, i) => known.set(cell, { ...(found.get(cell) ?? { step: [], tokens: [], value: [] }), changed: versions[i] }));
  }
  return cells.map(cell => known.get(cell));
}

const named = name => sweep.columns.get(name)?.label ?? name;
// Without its unit, where there is little room.
const short = name => named(name).replace(/ \(.*/, "");
const isNumber = name => sweep.columns.get(name)?.number ?? false;
const ofKind = (...kinds) => [...sweep.columns].filter(([, about]) => kinds.includes(about.kind)).map(([name, about]) => [name, about.label]);
const isOver = cell => ["done", "diverged"].includes(sweep.rows.state[cell]);

function shown(value) {
  if (typeof value === "string") return value;
  if (value === undefined || Number.isNaN(value)) return "–";
  if (!Number.isInteger(value)) return String(Number(value.toPrecision(5)));
  return Math.abs(value) < 10000 ? String(value) : value.toLocaleString("en-US");
}

// What is chosen on the page is in its address, so that it outlives a reload and can be handed on.
const chosen = { controls: {}, filters: [], sort: null, columns: null };
try { Object.assign(chosen, JSON.parse(decodeURIComponent(location.hash.slice(1)))); } catch { /* not of this page */ }
function remember() {
  history.replaceState(null, "", "#" + encodeURIComponent(JSON.stringify(chosen)));
}

// A link within the page changes its address, too.
addEventListener("hashchange", remember);

function fill(select, choices, fallback) {
  const wanted = [chosen.controls[select.id], fallback, select.value].find(one => choices.some(([value]) => value === one));
  const same = select.options.length === choices.length && choices.every(([value], i) => select.options[i].value === value);
  if (!same) select.replaceChildren(...choices.map(([value, label]) => new Option(label, value)));
  if (wanted !== undefined) select.value = wanted;
}

function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in element ? element[name] = value : element.setAttribute(name, value);
  element.append(...content);
  return element;
}

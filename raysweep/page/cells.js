"use strict";
// The filter, and the table of cells.
const AT_ONCE = 50;
const SIGNS = { "=": "is", "!=": "is not", "<": "<", "<=": "≤", ">": ">", ">=": "≥", has: "contains" };
let pageOfTable = 0;

// What a value is compared and sorted by: sizes by their parameters, which their names do not tell.
const ordered = (column, value) => column === "size" ? parametersOf(value) : value;

// A cell that does not have the column, or not yet, does not pass.
function passes({ column, sign, value }, cell) {
  const wanted = value.trim(), there = sweep.rows[column]?.[cell];
  if (wanted === "") return true;
  if (there === undefined) return false;
  if (sign === "has") return shown(there).toLowerCase().includes(wanted.toLowerCase());
  if (!isNumber(column) && ["=", "!="].includes(sign)) return (there === wanted) === (sign === "=");
  const a = ordered(column, there), b = isNumber(column) ? Number(wanted) : ordered(column, wanted);
  return { "=": a === b, "!=": a !== b, "<": a < b, "<=": a <= b, ">": a > b, ">=": a >= b }[sign];
}

// The cells that the filter leaves, in the table's order.
function visible() {
  const kept = [];
  for (let cell = 0; cell < sweep.count; cell++) if (chosen.filters.every(filter => passes(filter, cell))) kept.push(cell);
  const { column, down } = chosen.sort ?? {}, values = sweep.rows[column];
  if (!values) return kept;
  const empty = value => value === "" || value === undefined || Number.isNaN(value);
  return kept.sort((a, b) => {
    const x = ordered(column, values[a]), y = ordered(column, values[b]);
    if (empty(x) || empty(y)) return empty(x) - empty(y) || a - b;  // What is not there comes last, either way.
    return (x < y ? -1 : x > y ? 1 : 0) * (down ? -1 : 1) || a - b;
  });
}

function drawFilters() {
  const list = document.getElementById("filters");
  list.replaceChildren(...chosen.filters.map((filter, i) => {
    const column = make("select", { ariaLabel: "column of the filter" }, ...[...sweep.columns].map(([name, about]) => new Option(about.label, name, false, name === filter.column)));
    if (!sweep.columns.has(filter.column)) column.prepend(new Option(`${filter.column} (no cell has it yet)`, filter.column, true, true));
    const sign = make("select", { ariaLabel: "how it compares" }, ...Object.entries(SIGNS).map(([value, label]) => new Option(label, value, false, value === filter.sign)));
    const value = make("input", { ariaLabel: "value of the filter", value: filter.value, size: 12 });
    value.setAttribute("list", "values" + i);
    const offered = make("datalist", { id: "values" + i });
    const offer = () => {
      const levels = new Set(sweep.rows[filter.column] ?? []);
      offered.replaceChildren(...(levels.size <= 60 ? [...levels].filter(level => level !== "" && !Number.isNaN(level)).sort().map(level => make("option", { value: String(level) })) : []));
    };
    offer();
    column.addEventListener("change", () => { filter.column = column.value; offer(); changedView(); });
    sign.addEventListener("change", () => { filter.sign = sign.value; changedView(); });
    value.addEventListener("input", () => {
      filter.value = value.value;
      value.setAttribute("aria-invalid", isNumber(filter.column) && filter.sign !== "has" && value.value !== "" && Number.isNaN(Number(value.value)));
      changedView();
    });
    const away = make("button", { type: "button", ariaLabel: "remove this filter" }, "×");
    away.addEventListener("click", () => { chosen.filters.splice(i, 1); drawFilters(); changedView(); document.getElementById("add_filter").focus(); });
    return make("li", {}, column, sign, value, offered, away);
  }));
}

function addFilter(column, value) {
  chosen.filters.push({ column, sign: "=", value });
  drawFilters();
  document.querySelector("#filters li:last-child input").focus();
}

const defaultColumns = () => ["state", "share", ...ofKind("setting").map(([name]) => name).slice(0, 6), sweep.defaults.y, sweep.defaults.x].filter((name, i, all) => sweep.columns.has(name) && all.indexOf(name) === i);
const tableColumns = () => (chosen.columns ?? defaultColumns()).filter(name => sweep.columns.has(name));

function drawChooser() {
  const box = document.getElementById("chooser"), used = tableColumns(), names = [...sweep.columns.keys()].join();
  if (box.dataset.names === names) return;  // Whoever is choosing goes on.
  box.dataset.names = names;
  box.replaceChildren(...[...sweep.columns].filter(([name]) => name !== "id").map(([name, about]) => {
    const tick = make("input", { type: "checkbox", checked: used.includes(name) });
    tick.addEventListener("change", () => {
      const now = tableColumns();
      chosen.columns = tick.checked ? [...now, name] : now.filter(other => other !== name);
      remember();
      drawCells();
    });
    return make("label", {}, tick, about.label);
  }));
}

function drawCells(order = visible()) {
  const columns = ["id", ...tableColumns()], last = Math.max(0, Math.ceil(order.length / AT_ONCE) - 1);
  pageOfTable = Math.min(pageOfTable, last);
  const from = pageOfTable * AT_ONCE, cells = order.slice(from, from + AT_ONCE);
  const focused = document.activeElement?.dataset?.key;
  document.querySelector("#cells thead").replaceChildren(make("tr", {}, ...columns.map(name => {
    const sorted = chosen.sort?.column === name, button = make("button", { type: "button", title: named(name) }, short(name), make("span", { ariaHidden: "true" }, sorted ? (chosen.sort.down ? " ▼" : " ▲") : ""));
    button.dataset.key = "sort " + name;
    button.addEventListener("click", () => { chosen.sort = sorted && chosen.sort.down ? null : { column: name, down: sorted }; changedView(); });
    return make("th", { scope: "col", ariaSort: sorted ? (chosen.sort.down ? "descending" : "ascending") : "none", className: isNumber(name) ? "number" : "" }, button);
  })));
  document.querySelector("#cells tbody").replaceChildren(...cells.map(cell => {
    return make("tr", {}, ...columns.map(name => {
      const value = sweep.rows[name]?.[cell];
      if (name === "id") {
        const button = make("button", { type: "button", className: "link" }, value);
        button.dataset.key = "cell " + cell;
        button.addEventListener("click", () => showCell(cell));
        return make("th", { scope: "row" }, button);
      }
      if (name === "share") return make("td", { className: "number" }, make("span", { className: "bar" }, make("span", { style: `width:${100 * value}%` })), (100 * value).toFixed(0) + "%");
      if (name === "state") return make("td", {}, make("span", { className: "state " + value.replaceAll(" ", "_") }, value));
      return make("td", { className: isNumber(name) ? "number" : "" }, shown(value));
    }));
  }));
  if (focused) [...document.querySelectorAll("#cells button")].find(button => button.dataset.key === focused)?.focus();
  document.getElementById("table_range").textContent = order.length ? `${from + 1} to ${from + cells.length} of ${order.length.toLocaleString("en-US")}` : "no cell passes the filter";
  document.getElementById("table_before").disabled = pageOfTable === 0;
  document.getElementById("table_after").disabled = pageOfTable === last;
  document.getElementById("shown").textContent = `${order.length.toLocaleString("en-US")} of ${sweep.count.toLocaleString("en-US")} cells`;
}

let dialogCell = null;
function showCell(cell) {
  dialogCell = cell;
  const dialog = document.getElementById("cell");
  fillDialog();
  if (!dialog.open) dialog.showModal();
}
function fillDialog() {
  const cell = dialogCell, rows = [...sweep.columns].filter(([name]) => name !== "id" && sweep.rows[name] !== undefined);
  const there = rows.filter(([name]) => !["", "–"].includes(shown(sweep.rows[name][cell])));
  document.getElementById("cell_name").textContent = sweep.rows.id[cell];
  document.getElementById("cell_facts").replaceChildren(...there.map(([name, about]) => make("tr", {}, make("th", { scope: "row" }, about.label), make("td", {}, shown(sweep.rows[name][cell])))));
}

document.getElementById("add_filter").addEventListener("click", () => addFilter(ofKind("setting")[0]?.[0] ?? "state", ""));
document.getElementById("only_cell").addEventListener("click", () => {
  document.getElementById("cell").close();
  addFilter("id", sweep.rows.id[dialogCell]);
  changedView();
});
document.getElementById("close_cell").addEventListener("click", () => document.getElementById("cell").close());
document.getElementById("table_before").addEventListener("click", () => { pageOfTable--; drawCells(); });
document.getElementById("table_after").addEventListener("click", () => { pageOfTable++; drawCells(); });

"use strict";
// What only a page that is served has: progress, failures, verdicts, and asking again and again.
const EVERY = 2000;
let lastVerdict = null, lastState = null, silentSince = null;

function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${(seconds / 3600).toFixed(1)} h` : `${(seconds / 86400).toFixed(1)} days`;
}

function showState(state) {
  const total = Object.values(state.counts).reduce((sum, n) => sum + n, 0), counts = state.counts;
  document.getElementById("progress").replaceChildren(...Object.entries(counts).map(([name, n]) => {
    const part = make("span", { className: "part " + name.replaceAll(" ", "_"), title: `${n} ${name}` });
    part.style.flexGrow = n / total;
    return part;
  }));
  // The bar's legend: each number has the colour of its part.
  const said = Object.entries(counts).flatMap(([name, n], i) => [i ? ", " : "", make("span", { className: "state " + name.replaceAll(" ", "_") }, `${n.toLocaleString("en-US")} ${name}`)]);
  document.getElementById("counts").replaceChildren(...said, ` of ${total.toLocaleString("en-US")} cells` + (state.evaluations.planned ? `; ${state.evaluations.done.toLocaleString("en-US")} of ${state.evaluations.planned.toLocaleString("en-US")} evaluations` : ""));
  document.getElementById("pace").textContent = state.pace;
  const link = document.getElementById("dashboard");
  link.hidden = !state.dashboard;
  if (state.dashboard) link.href = state.dashboard;
  const alert = document.getElementById("problem");
  if (alert.textContent !== state.problem) alert.textContent = state.problem;
  alert.hidden = !state.problem;
  document.title = `${counts.done ?? 0}/${total} ${state.name}`;
  if (state.failures) drawFailures(state.failures, state.retry, state.failed);
}

function drawFailures(failures, retry, number) {
  const section = document.getElementById("failures_section");
  section.hidden = !failures.length;
  const text = JSON.stringify([failures, retry]);
  if (section.dataset.shown === text) return;
  section.dataset.shown = text;
  document.getElementById("retry").textContent = retry;
  document.getElementById("failures_said").textContent = number > failures.length ? `The first ${failures.length} of ${number.toLocaleString("en-US")}.` : "";
  document.querySelector("#failures tbody").replaceChildren(...failures.map(([cell, stage, error]) => make("tr", {}, make("th", { scope: "row" }, cell), make("td", {}, stage), make("td", {}, error))));
}

async function showVerdicts(state) {
  document.getElementById("verdicts_said").textContent = state.verdicts.said;
  if (state.verdicts.stamp === lastVerdict) return;
  // Written by this server, which escapes what is in it.
  document.getElementById("verdicts").innerHTML = await source.verdicts();
  lastVerdict = state.verdicts.stamp;
}

function showAge() {
  const said = document.getElementById("read");
  if (silentSince !== null) said.textContent = `raysweep watch does not answer since ${new Date(silentSince).toLocaleTimeString()}: what it said before is shown`;
  else if (lastState) said.textContent = lastState.read_at === null ? "reading the store…" : lastState.fixed ? "published results" : `read ${duration(Math.max(0, lastState.now - lastState.read_at))} ago`;
  said.className = silentSince === null ? "quiet" : "banner";
}

async function update() {
  try {
    if (!document.hidden) {
      const state = await source.state();
      silentSince = null;
      lastState = state;
      showState(state);
      if (await take(state)) show();
      await showVerdicts(state);
    }
  } catch (error) {
    silentSince ??= Date.now();
    console.info("raysweep watch:", error.message);
  }
  showAge();
  setTimeout(update, EVERY);
}
document.addEventListener("visibilitychange", drawPlots);
update();

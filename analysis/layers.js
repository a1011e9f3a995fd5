"use strict";
// What was measured of each layer, where anything was: by depth, over training, and against the loss.
const layered = document.getElementById("layers_data") ? JSON.parse(document.getElementById("layers_data").textContent) : null;
function showLayers() {
  if (!layered) return;
  const series = layered.series, metrics = [...new Set(Object.values(series).flatMap(Object.keys))], spaced = name => [name, name.replaceAll("_", " ")];
  const metric = control("layer_metric"), part = control("layer_part"), view = control("layer_view"), by = control("layer_colour");
  fill(metric, metrics.map(spaced));
  fill(by, ofKind("setting"), sweep.defaults.curve_colour);
  // What there is of a metric, and of a part of the model, is another for each.
  function choices() {
    fill(part, Object.keys(series).filter(name => metric.value in series[name]).map(name => [name, name]));
    const layers = [...new Set(Object.values(series[part.value][metric.value]).flatMap(of => of.layers))], views = [["depth", "by depth, when last measured"]];
    if (layered.correlations[part.value + "|" + metric.value]) views.push(["correlation", "correlation with the loss, by depth"]);
    fill(view, [...views, ...layers.map(layer => ["layer " + layer, "over training, layer " + layer])]);
  }
  plots.layer_plot = order => {
    const title = spaced(metric.value)[1] + " of " + part.value, traces = [];
    let drawn;
    if (view.value === "correlation") {
      const rows = layered.correlations[part.value + "|" + metric.value];
      traces.push({ type: "scatter", mode: "markers+lines", x: rows.map(r => r.layer), y: rows.map(r => r.value), line: { color: shade(0.4), width: 1 }, marker: { size: 8 },
        error_y: { type: "data", symmetric: false, array: rows.map(r => r.high === null ? 0 : r.high - r.value), arrayminus: rows.map(r => r.low === null ? 0 : r.value - r.low) }, hovertemplate: "layer %{x}<br>%{y:.3f}<extra></extra>" });
      drawn = layout("layer", "correlation with the loss");
      Object.assign(drawn.yaxis, { zeroline: true, range: [-1.05, 1.05] });
      Object.assign(drawn, { showlegend: false });
      drawn.xaxis.type = "category";
    } else {
      const of = series[part.value][metric.value], cells = order.filter(cell => of[sweep.rows.id[cell]]), colour = colouring(by.value, cells), already = new Set(), depth = view.value === "depth", layer = view.value.slice(6);
      for (const cell of cells) {
        const one = of[sweep.rows.id[cell]], row = one.layers.indexOf(layer), k = colour.level(cell), name = colour.scale ? "" : shown(colour.levels[k] ?? "none");
        if (!depth && row < 0) continue;
        const text = about(cell), at = depth ? one.layers : one.at;
        traces.push({ type: "scatter", mode: "lines+markers", name: escaped(name), legendgroup: name, legendrank: k, showlegend: !colour.scale && !already.has(name), x: at, y: depth ? one.values.map(v => v[v.length - 1]) : one.values[row],
          text: at.map(() => text), hovertemplate: "%{text}<br>" + (depth ? "layer %{x}, after " + (100 * one.at[one.at.length - 1]).toFixed(0) + "% of training" : "%{x:.2%} of training") + "<br>%{y:.4g}<extra></extra>", line: { color: colour.of(cell), width: 1.4 }, marker: { size: 4 } });
        already.add(name);
      }
      if (colour.scale) traces.push(scaleBar(colour, by.value));
      drawn = layout(depth ? "layer" : "share of training", title + (depth ? "" : ", layer " + layer));
      if (depth) drawn.xaxis.type = "category";
      drawn.legend.title = legendOf(by.value);
    }
    by.disabled = view.value === "correlation";
    Plotly.react("layer_plot", traces, drawn, config);
  };
  for (const select of [metric, part]) select.addEventListener("change", () => { choices(); redraw("layer_plot"); });
  for (const select of [view, by]) select.addEventListener("change", () => redraw("layer_plot"));
  choices();
  watching.observe(control("layer_plot"));
  redraw("layer_plot");
}

// The explorer: everything it shows is in explorer/data.js, since a page opened from disk cannot fetch files.
// Names come from suites and data sets: they are put into the page as text only, never as HTML.
"use strict";
(() => {
  const { families, models, axes, styles } = window.SIPP_BENCH;
  const byId = new Map(models.map((model) => [model.id, model]));
  const byKey = new Map(axes.map((axis) => [axis.key, axis]));
  const $ = (id) => document.getElementById(id);
  const FILTERS = { run: "Run", network: "Network", data: "Data", seed: "Seed", keep: "Keep", made: "Made by" };
  const ROWS = 200;
  const chosen = [null, null];

  const make = (tag, attributes = {}, ...children) => {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const text = (value) => (value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString());
  const percent = (value) => (value === null || value === undefined ? "–" : `${(100 * value).toFixed(1)}`);
  const scaled = (model, axis) => {
    const value = axis.key === "keep" ? model.keep : model.metrics[axis.key];
    return value === null || value === undefined ? null : value * axis.scale;
  };
  // Plotly reads a few HTML tags in labels.
  const plain = (name) => String(name).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
  const made = (model) => model.operation.name;
  const facet = (model, name) => String(name === "made" ? made(model) : model[name]);
  const label = (model) =>
    made(model) === "train" ? "trained, dense" : `${model.method}, keep ${model.keep}${made(model) === "retrain" ? ", retrained" : ""}`;
  const title = (model) => `${label(model)}: ${model.network} on ${model.data}, seed ${model.seed}, run ${model.run}`;

  function fillControls() {
    for (const [id, wanted] of [["x", "compression"], ["y", "accuracy"]]) {
      for (const axis of axes) $(id).append(make("option", { value: axis.key }, axis.label));
      if (byKey.has(wanted)) $(id).value = wanted;
    }
    for (const [name, words] of Object.entries(FILTERS)) {
      const values = [...new Set(models.map((model) => facet(model, name)))];
      if (name === "seed" || name === "keep") values.sort((a, b) => b - a);
      const select = make("select", { id: `filter-${name}` }, make("option", { value: "" }, "all"));
      for (const value of values) select.append(make("option", { value: `=${value}` }, value));
      $("filters").append(make("label", {}, `${words} `, select));
    }
    for (const [name, style] of Object.entries(styles)) {
      const box = make("input", { type: "checkbox", value: name, checked: "" });
      const swatch = make("span", { class: "swatch", "aria-hidden": "true" });
      swatch.style.background = style.colour;
      $("methods").append(make("label", { class: "check" }, box, swatch, ` ${name}`));
    }
    const tick = (on) => () => {
      for (const box of $("methods").querySelectorAll("input")) box.checked = on;
      draw();
    };
    $("all-methods").addEventListener("click", tick(true));
    $("no-methods").addEventListener("click", tick(false));
    $("controls").addEventListener("change", draw);
    $("controls").addEventListener("submit", (event) => event.preventDefault());
  }

  function shownModels() {
    const methods = new Set([...$("methods").querySelectorAll("input:checked")].map((box) => box.value));
    const wanted = Object.keys(FILTERS).map((name) => [name, $(`filter-${name}`).value]);
    return models.filter(
      (model) =>
        (model.method === null || methods.has(model.method)) &&
        wanted.every(([name, value]) => value === "" || value === `=${facet(model, name)}`),
    );
  }

  function draw() {
    const [x, y] = [byKey.get($("x").value), byKey.get($("y").value)];
    const all = shownModels();
    const shown = all.filter((model) => scaled(model, x) !== null && scaled(model, y) !== null);
    const without = all.length - shown.length;
    $("count").textContent =
      `${shown.length} of ${models.length} models shown` + (without ? `; ${without} more lack one of the two measures.` : ".");
    const trace = (group, name, marker) => ({
      type: "scatter", mode: "markers", name: plain(name), marker,
      x: group.map((model) => scaled(model, x)), y: group.map((model) => scaled(model, y)),
      customdata: group.map((model) => model.id), text: group.map((model) => plain(title(model))),
      hovertemplate: `%{text}<br>${plain(x.label)}: %{x:.4g}<br>${plain(y.label)}: %{y:.4g}<extra></extra>`,
    });
    const groups = [null, ...Object.keys(styles)].map((method) => {
      const style = method === null ? { colour: "#333333", symbol: "star" } : styles[method];
      const marker = { color: style.colour, symbol: style.symbol, size: method === null ? 12 : 8, opacity: 0.85 };
      return trace(shown.filter((model) => model.method === method), method ?? "trained, dense", marker);
    });
    const picked = chosen.map((model) => model && shown.includes(model) && model);
    picked.forEach((model, which) => {
      if (!model) return;
      const ring = trace([model], `model ${"AB"[which]}`, { symbol: "circle-open", size: 19, color: "#c00000", line: { width: 2.5 } });
      groups.push({ ...ring, mode: "markers+text", text: ["AB"[which]], textposition: "top center", hoverinfo: "skip", hovertemplate: null, showlegend: false });
    });
    // Plotly writes the 2 of 20 and of 200 as a small 2.
    const logTicks = { tickvals: [-4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6].flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`))) };
    const axisOf = (axis, id) => ({ title: { text: plain(axis.label) }, automargin: true, ...($(id).checked ? { type: "log", ...logTicks } : { type: "linear" }) });
    const layout = {
      xaxis: axisOf(x, "x-log"), yaxis: axisOf(y, "y-log"), height: 520, margin: { t: 30, r: 15, l: 50, b: 45 },
      font: { family: "system-ui, sans-serif", color: "#1d2328" }, paper_bgcolor: "#fff", plot_bgcolor: "#fff",
      legend: { orientation: "h", y: -0.2 }, hovermode: "closest",
    };
    window.Plotly.react("plot", groups.filter((group) => group.x.length), layout, { responsive: true, displaylogo: false });
    list(shown, x, y);
  }

  function list(shown, x, y) {
    const head = ["Choose", "Model", "Network", "Data", "Seed", "Run", x.label, y.label];
    const rows = [...shown].sort((a, b) => scaled(b, y) - scaled(a, y)).slice(0, ROWS).map((model) => {
      const buttons = make("td", { class: "text" });
      ["A", "B"].forEach((name, which) => {
        const button = make("button", { type: "button", "aria-label": `model ${name}: ${title(model)}` }, name);
        button.addEventListener("click", () => choose(which, model));
        buttons.append(button, " ");
      });
      const words = [label(model), model.network, model.data, model.seed, model.run];
      return make("tr", {}, buttons, ...words.map((word) => make("td", { class: "text" }, String(word))),
        ...[x, y].map((axis) => make("td", {}, text(scaled(model, axis)))));
    });
    const note = shown.length > ROWS ? [make("caption", {}, `The first ${ROWS} of ${shown.length}; filter to see the others.`)] : [];
    $("table").replaceChildren(...note, header(head, 6), make("tbody", {}, ...rows));
  }

  const header = (heads, words = 1) =>
    make("thead", {}, make("tr", {}, ...heads.map((head, index) => make("th", index < words ? { scope: "col", class: "text" } : { scope: "col" }, head))));
  const row = (name, ...values) =>
    make("tr", {}, make("th", { scope: "row", class: "text" }, name), ...values.map((value) => make("td", {}, value)));

  function choose(which, model) {
    chosen[which] = model;
    $("nothing").hidden = true;
    $("chosen").hidden = false;
    const both = chosen.map((model, index) => [model, `Model ${"AB"[index]}`]).filter(([model]) => model);
    $("lineage").replaceChildren(...both.map(lineage));
    $("metrics").replaceChildren(...metrics(both));
    $("layers").replaceChildren(...layers(both));
    $("classes").replaceChildren(...classes(both));
    $("flips").replaceChildren(...both.map(flips));
    draw();
  }

  // From the trained network to this one.
  function lineage([model, name]) {
    const line = [];
    for (let each = model; each; each = byId.get(each.base)) line.unshift(each);
    const steps = line.map((each) => {
      const options = Object.entries(each.operation.parameters.options ?? {}).map(([key, value]) => `${key} = ${value}`);
      const accuracy = each.metrics.accuracy;
      const words = `${label(each)}${options.length ? ` (${options.join(", ")})` : ""}: test accuracy ${percent(accuracy)} %`;
      const step = make("li", each === model ? { "aria-current": "step" } : {}, words);
      if (each !== model) {
        const button = make("button", { type: "button" }, `as ${name}`);
        button.addEventListener("click", () => choose(name.endsWith("A") ? 0 : 1, each));
        step.append(" ", button);
      }
      return step;
    });
    return make("div", {}, make("h3", {}, name), make("p", {}, title(model)), make("ol", { class: "lineage" }, ...steps));
  }

  function metrics(both) {
    const rows = axes
      .filter((axis) => axis.key !== "keep" && both.some(([model]) => scaled(model, axis) !== null))
      .map((axis) => {
        const values = both.map(([model]) => scaled(model, axis));
        const all = values.length === 2 && values.every((value) => value !== null);
        return row(axis.label, ...values.map(text), ...(values.length === 2 ? [all ? text(values[1] - values[0]) : "–"] : []));
      });
    return [header(["Measure", ...both.map(([, name]) => name), ...(both.length === 2 ? ["B − A"] : [])]), make("tbody", {}, ...rows)];
  }

  function layers(both) {
    const names = [...new Set(both.flatMap(([model]) => model.layers.map((layer) => layer.layer)))];
    if (!names.length) return [make("caption", {}, "A trained model keeps all of every layer.")];
    const found = (model, name) => model.layers.find((layer) => layer.layer === name);
    const heads = both.flatMap(([, name]) => [`${name}: weights`, "requested (%)", "kept (%)", "mean bound ε"]);
    const rows = names.map((name) => {
      const each = both.map(([model]) => found(model, name));
      const values = each.flatMap((layer) =>
        layer
          ? [layer.weights.toLocaleString("en"), percent(layer.requested / layer.weights), percent(layer.kept / layer.weights), text(layer.epsilon_mean)]
          : ["–", "–", "–", "–"]);
      const pair = each.length === 2 && each.every(Boolean);
      const difference = pair ? percent(each[1].kept / each[1].weights - each[0].kept / each[0].weights) : "–";
      return row(name, ...values, ...(both.length === 2 ? [difference] : []));
    });
    return [header(["Layer", ...heads, ...(both.length === 2 ? ["kept, B − A (points)"] : [])]), make("tbody", {}, ...rows)];
  }

  function classes(both) {
    const trained = (model) => byId.get(`${model.family}/dense`);
    const [names] = both.map(([model]) => families[model.family].classes).sort((a, b) => b.length - a.length);
    if (!both.some(([model]) => model.class_accuracies.length)) return [make("caption", {}, "No accuracies by class are stored for these models.")];
    const heads = both.flatMap(([, name]) => [`${name}: accuracy (%)`, "dense (%)", "R(a) (nats)"]);
    const rows = names.map((name, index) =>
      row(name, ...both.flatMap(([model]) => [
        percent(model.class_accuracies[index]), percent(trained(model).class_accuracies[index]), text(model.class_loss_changes[index])])));
    return [header(["Class", ...heads]), make("tbody", {}, ...rows)];
  }

  function flips([model, name]) {
    const family = families[model.family];
    const panel = make("div", {}, make("h4", {}, name));
    if (!model.flips) {
      const words = made(model) === "train" ? "A trained model has no base that its predictions could flip against." : family.note;
      panel.append(make("p", { class: "note" }, words));
      return panel;
    }
    const base = byId.get(model.base);
    const before = base.flips ? base.flips.shown : family.dense;
    const named = (index) => family.classes[index];
    panel.append(make("p", {}, `${model.flips.count} of ${family.test_points} predictions differ from those of: ${label(base)}.`));
    const pairs = model.flips.pairs.slice(0, 10).map(([from, to, count]) => row(`${named(from)} → ${named(to)}`, String(count)));
    if (pairs.length) {
      const table = make("table", {}, header(["From → to", "How often"]), make("tbody", {}, ...pairs));
      panel.append(make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Kinds of flips, ${name}` }, table));
    }
    if (family.note) panel.append(make("p", { class: "note" }, family.note));
    const changed = family.positions.map((_, index) => index).filter((index) => before[index] !== model.flips.shown[index]);
    const tiles = changed.map((index) => {
      const words = `${named(family.labels[index])}: ${named(before[index])} → ${named(model.flips.shown[index])}`;
      const caption = make("figcaption", {}, words, make("small", {}, ` test point ${family.positions[index]}`));
      return make("figure", { class: "tile" }, ...picture(family, index, words), caption);
    });
    panel.append(make("p", {}, `${tiles.length} of them are shown, each with its label: predicted before → after.`), make("div", { class: "tiles" }, ...tiles));
    return panel;
  }

  function picture(family, index, words) {
    if (!family.sheet) return [];
    const [width, height] = family.tile;
    const zoom = Math.max(1, Math.floor(64 / Math.max(width, height)));
    const image = make("div", { class: "thumbnail", role: "img", "aria-label": words });
    const [column, line] = [index % family.columns, Math.floor(index / family.columns)];
    const lines = Math.ceil(family.positions.length / family.columns);
    Object.assign(image.style, {
      width: `${width * zoom}px`, height: `${height * zoom}px`,
      backgroundImage: `url("explorer/${family.sheet}")`,
      backgroundSize: `${family.columns * width * zoom}px ${lines * height * zoom}px`,
      backgroundPosition: `-${column * width * zoom}px -${line * height * zoom}px`,
    });
    return [image];
  }

  fillControls();
  draw();
  $("plot").on("plotly_click", (event) => {
    const model = byId.get(event.points[0].customdata);
    if (model) choose(event.event.shiftKey ? 1 : 0, model);
  });
})();

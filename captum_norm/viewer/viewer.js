"use strict";
// One page of attention maps. Text enters the page through textContent and canvas only, never as markup.
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const at = (id) => document.getElementById(id);
  const made = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // ---- colours: even steps of lightness, from paper to ink in the light and from dark to bright in the dark

  const STOPS = {
    light: {
      weight: ["#f5f8fc", "#d6e4f3", "#a9cae7", "#70a9d6", "#3a84bf", "#14609f", "#053f78", "#03254c"],
      norm: ["#fdf7f2", "#fbe0cb", "#f8bf94", "#f0965a", "#dc6c2a", "#b54a12", "#84310a", "#521c05"],
      share: ["#f4f9f5", "#d3eadb", "#a5d3b6", "#6cb78c", "#3a9668", "#17744a", "#075231", "#02321d"],
      middle: "#f7f7f7",
    },
    dark: {
      weight: ["#171d25", "#17304a", "#184a76", "#2067a3", "#3a86c8", "#6ba8e2", "#a3cbf3", "#ddeefe"],
      norm: ["#201a16", "#45260f", "#6f3610", "#9f4c16", "#cf6a28", "#ee9252", "#f9bd92", "#ffe8d6"],
      share: ["#161e1a", "#143427", "#15503a", "#1f6e50", "#3a8f6b", "#67b38c", "#9fd2b6", "#dcf3e5"],
      middle: "#1c2127",
    },
  };
  const channels = (hex) => [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  const luminance = (colour) => {
    const linear = colour.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };

  class Ramp {
    // 256 colours between the stops, as CSS, as pixels, and the colour of letters on each.
    constructor(stops) {
      this.colours = Array.from({ length: 256 }, (_, i) => {
        const place = (i / 255) * (stops.length - 1), low = Math.min(Math.floor(place), stops.length - 2);
        const [a, b] = [channels(stops[low]), channels(stops[low + 1])];
        return a.map((c, j) => Math.round(c + (b[j] - c) * (place - low)));
      });
      this.css = this.colours.map((c) => `rgb(${c.join(",")})`);
      this.ink = this.colours.map((c) => (luminance(c) > 0.24 ? "#12161b" : "#ffffff"));
      this.pixels = new Uint32Array(256);
      const bytes = new Uint8Array(this.pixels.buffer);
      this.colours.forEach((c, i) => bytes.set([...c, 255], 4 * i));
    }
  }

  let ramps, surface, theme = "auto";
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  function setTheme(chosen) {
    theme = chosen;
    const resolved = chosen === "auto" ? (system.matches ? "dark" : "light") : chosen;
    document.documentElement.dataset.theme = resolved;
    const stops = STOPS[resolved];
    const signed = [...stops.weight.slice(1, 6).reverse(), stops.middle, ...stops.norm.slice(1, 6)];
    ramps = { weight: new Ramp(stops.weight), norm: new Ramp(stops.norm), share: new Ramp(stops.share), signed: new Ramp(signed) };
    const style = getComputedStyle(document.documentElement);
    surface = Object.fromEntries(
      ["paper", "panel", "ink", "muted", "line", "faint", "focus", "held"].map((n) => [n, style.getPropertyValue(`--${n}`).trim()]));
    surface.dark = resolved === "dark";
    at("theme").textContent = { auto: "◐ System", light: "○ Light", dark: "● Dark" }[chosen];
    at("theme").setAttribute("aria-label", `Colours: ${{ auto: "as the system", light: "light", dark: "dark" }[chosen]}. Change them`);
  }
  const pixelOf = (hex) => {
    const pixel = new Uint32Array(1);
    new Uint8Array(pixel.buffer).set([...channels(hex), 255]);
    return pixel[0];
  };

  // ---- reading the numbers back

  const LEVELS = { 8: 255, 16: 65535 };
  async function decode(stored) {
    const letters = atob(stored.data), bytes = new Uint8Array(letters.length);
    for (let i = 0; i < bytes.length; i++) bytes[i] = letters.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const all = new Uint8Array(await new Response(stream).arrayBuffer());
    const arrays = {};
    for (const array of stored.arrays) {
      const count = array.shape.reduce((a, b) => a * b, 1);
      let codes = all.subarray(array.offset, array.offset + count);
      if (array.bits === 16) {
        const low = all.subarray(array.offset + count, array.offset + 2 * count);
        codes = Uint16Array.from(codes, (high, i) => high * 256 + low[i]);
      }
      arrays[array.name] = { ...array, codes };
    }
    return arrays;
  }

  function numbers(array, index) {
    // One map of an array: (query, key), or (key) for lengths.
    const size = array.shape.slice(1).reduce((a, b) => a * b, 1), from = index * size;
    const values = new Float32Array(size), scale = array.scales[index];
    if (array.signed) {
      const middle = Math.floor(LEVELS[array.bits] / 2);
      for (let i = 0; i < size; i++) {
        const root = (array.codes[from + i] - middle) / middle;
        values[i] = scale * root * Math.abs(root);
      }
    } else {
      const unit = scale / LEVELS[array.bits] ** 2;
      for (let i = 0; i < size; i++) values[i] = array.codes[from + i] ** 2 * unit;
    }
    return values;
  }

  // ---- what is chosen

  const ALL = -1; // all heads together
  const held = new Set(content.quantities);
  const hasWeight = held.has("weights") || held.has("mean_weights");
  const hasNorm = held.has("head_norms") || held.has("summed_norms");
  const MODES = [
    ...(hasWeight ? [{ id: "weight", title: "Weight", dot: "weight", key: "w" }] : []),
    ...(hasNorm ? [{ id: "norm", title: "Norm", dot: "norm", key: "n" }] : []),
    ...(hasWeight && hasNorm ? [
      { id: "both", title: "Both", dot: "both", key: "b" },
      { id: "difference", title: "Difference", dot: "difference", key: "d" },
    ] : []),
    ...content.quantities
      .filter((name) => !["weights", "mean_weights", "head_norms", "summed_norms", "transformed_norms"].includes(name))
      .map((name) => ({ id: name, title: content.looks[name].title, dot: content.looks[name].colours })),
  ];
  const state = {
    example: 0, call: 0, head: ALL, view: "map", mode: hasWeight && hasNorm ? "both" : MODES[0].id, scale: "map", threshold: 0,
    row: 0, column: 0, held: false, pointed: false,
  };
  const decoded = content.examples.map(() => []); // by example and call
  const asides = new Map(); // by number of an axis: the columns set aside

  const example = () => content.examples[state.example];
  const stored = (call = state.call) => example().maps[call];
  const arraysOf = (call) => decoded[state.example][call];
  const queriesOf = (call = state.call) => content.axes[stored(call).queries];
  const keysOf = (call = state.call) => content.axes[stored(call).keys];
  const asideOf = (call = state.call) => {
    const axis = stored(call).keys;
    if (!asides.has(axis)) asides.set(axis, new Set());
    return asides.get(axis);
  };
  const mainMode = () => (state.mode === "both" ? "norm" : state.mode);
  const headsChosen = () => {
    const { heads } = content.calls[state.call];
    if (state.head !== ALL) return `head ${heads[state.head]}`;
    return heads.length === 1 ? "1 head" : `all ${heads.length} heads together`;
  };

  // ---- maps: {values, rows, columns, signed, colours, title, unit, of}, or {missing: why}

  function mapOf(call, head, mode) {
    const arrays = arraysOf(call);
    if (mode === "difference") return differenceOf(call, head);
    if (mode === "weight") return weightMap(call, arrays, head);
    if (mode === "norm") return normMap(call, arrays, head);
    if (head !== ALL) return { missing: "It is one map for all heads together: choose “all” at a glance." };
    return arrays[mode] ? mapped(call, mode, numbers(arrays[mode], 0)) : missing(call, mode, "This call does not have it.");
  }

  function mapped(call, quantity, values, of = "") {
    const rows = queriesOf(call).written.length, signed = values.some((value) => value < 0);
    return { values, rows, columns: values.length / Math.max(rows, 1), signed, of, ...content.looks[quantity] };
  }
  const missing = (call, quantity, otherwise) => ({ missing: content.calls[call].absent[quantity] || otherwise });
  const notStored = (what, quantity) =>
    `The ${what} of single heads are not on this page: it was made without the quantity ${quantity}. Choose “all” at a glance.`;

  function weightMap(call, arrays, head) {
    if (head === ALL && !arrays.weights && arrays.mean_weights) return mapped(call, "mean_weights", numbers(arrays.mean_weights, 0));
    if (!arrays.weights) return missing(call, "weights", notStored("weights", "weights"));
    const ofHead = (one) => numbers(arrays.weights, one), count = arrays.weights.shape[0];
    return head === ALL ? mapped(call, "weights", meanOf(count, ofHead), "mean of heads") : mapped(call, "weights", ofHead(head));
  }

  function normMap(call, arrays, head) {
    if (head === ALL && arrays.summed_norms) return mapped(call, "summed_norms", numbers(arrays.summed_norms, 0));
    const kept = arrays.head_norms || arrays.lengths;
    if (!kept) return missing(call, "head_norms", notStored("norms", "head_norms"));
    const ofHead = (one) => (arrays.head_norms ? numbers(arrays.head_norms, one) : timesLengths(arrays, one));
    return head === ALL ? mapped(call, "head_norms", meanOf(kept.shape[0], ofHead), "mean of heads") : mapped(call, "head_norms", ofHead(head));
  }

  function timesLengths(arrays, head) {
    const values = numbers(arrays.weights, head), lengths = numbers(arrays.lengths, head), keys = lengths.length;
    for (let i = 0; i < values.length; i++) values[i] = Math.abs(values[i]) * lengths[i % keys];
    return values;
  }

  function differenceOf(call, head) {
    const weight = mapOf(call, head, "weight"), norm = mapOf(call, head, "norm");
    if (weight.missing || norm.missing) return weight.missing ? weight : norm;
    const less = shares(weight, asideOf(call)), values = shares(norm, asideOf(call));
    for (let i = 0; i < values.length; i++) values[i] -= less[i];
    return { ...norm, values, signed: true, colours: "signed", title: "Norm less weight", unit: "share of the row", of: "" };
  }

  function meanOf(count, one) {
    const mean = one(0);
    for (let head = 1; head < count; head++) {
      const other = one(head);
      for (let i = 0; i < mean.length; i++) mean[i] += other[i];
    }
    for (let i = 0; i < mean.length; i++) mean[i] /= count;
    return mean;
  }

  function shares(map, aside) {
    // Each number as a part of its row; a column that is set aside has none.
    const { values, rows, columns } = map, parts = new Float32Array(values.length);
    for (let row = 0; row < rows; row++) {
      let sum = 0;
      for (let c = 0; c < columns; c++) if (!aside.has(c)) sum += Math.abs(values[row * columns + c]);
      if (sum > 0) for (let c = 0; c < columns; c++) if (!aside.has(c)) parts[row * columns + c] = values[row * columns + c] / sum;
    }
    return parts;
  }

  function largestOf(map, aside) {
    let most = 0;
    const { values, columns } = map;
    for (let i = 0; i < values.length; i++) {
      const size = Math.abs(values[i]);
      if (size > most && !(aside.size && aside.has(i % columns))) most = size;
    }
    return most;
  }

  const sharedLargest = new Map();
  function largestOfAll(mode, together) {
    const key = `${state.example} ${mode} ${together}`;
    if (!sharedLargest.has(key)) {
      let most = 0;
      example().maps.forEach((map, call) => {
        if (!map || !arraysOf(call)) return;
        const heads = together ? [ALL] : content.calls[call].heads.keys();
        for (const head of heads) {
          const found = mapOf(call, head, mode);
          if (!found.missing) most = Math.max(most, largestOf(found, asideOf(call)));
        }
      });
      sharedLargest.set(key, most);
    }
    return sharedLargest.get(key);
  }

  function limits(map, aside, mode, head) {
    // What the darkest colour of each row stands for.
    const limit = new Float32Array(map.rows);
    if (state.scale === "row") {
      for (let row = 0; row < map.rows; row++) {
        let most = 0;
        for (let c = 0; c < map.columns; c++) if (!aside.has(c)) most = Math.max(most, Math.abs(map.values[row * map.columns + c]));
        limit[row] = most;
      }
      return limit;
    }
    return limit.fill(state.scale === "all" ? largestOfAll(mode, head === ALL) : largestOf(map, aside));
  }

  const step = (value, limit, signed) =>
    limit <= 0 ? (signed ? 128 : 0)
      : signed ? Math.round(127.5 + 127.5 * Math.max(-1, Math.min(1, value / limit)))
        : Math.round(255 * Math.min(1, value / limit));
  const rampOf = (map) => (map.signed ? ramps.signed : ramps[map.colours]);

  // ---- tokens: rows and columns, and which belong together

  const nameOf = (axis, i) => (i < axis.written.length ? axis.written[i] : "residual");
  for (const axis of content.axes) {
    const times = new Map();
    for (const name of axis.written) times.set(name, (times.get(name) || 0) + 1);
    axis.repeated = axis.written.map((name) => times.get(name) > 1);
  }
  const placeOf = (axis, i) => (axis.grid || i >= axis.places.length || axis.places[i] < 0 ? i : axis.places[i]);
  function partners(call) {
    // For each row the column of the same token, and the other way round; -1 where there is none.
    const queries = queriesOf(call), keys = keysOf(call);
    const rowOf = new Array(keys.places.length).fill(-1), columnOf = new Array(queries.places.length).fill(-1);
    const same = queries.places.length === keys.places.length && queries.places.every((p, i) => p === keys.places[i]);
    const together = content.calls[call].kind !== "cross" && queries.source === keys.source;
    if (!together) return { rowOf, columnOf };
    const columnAt = new Map(keys.places.map((place, i) => [place, i]));
    queries.places.forEach((place, row) => {
      const column = same ? row : place >= 0 && columnAt.has(place) ? columnAt.get(place) : -1;
      columnOf[row] = column;
      if (column >= 0) rowOf[column] = row;
    });
    return { rowOf, columnOf };
  }
  const generatedFrom = (axis) => {
    if (axis.prompt === undefined) return -1;
    const first = axis.places.findIndex((place) => place >= axis.prompt);
    return first > 0 ? first : -1;
  };

  // ---- writing numbers

  const short = (value) => {
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size >= 1000 || size < 0.001) return value.toExponential(1).replace("-", "−");
    return value.toPrecision(size < 0.1 ? 2 : 3).replace("-", "−");
  };
  const percent = (part, signed = false) => {
    const number = 100 * part, size = Math.abs(number);
    const text = size >= 9.95 ? size.toFixed(0) : size.toFixed(1);
    return `${number < 0 && text !== "0.0" ? "−" : signed && text !== "0.0" ? "+" : ""}${text} %`;
  };
  const count = (n, one, many = `${one}s`) => `${n} ${n === 1 ? one : many}`;

  // ---- one large map

  const FONT = getComputedStyle(document.body).fontFamily;
  const clip = (context, text, width) => {
    if (context.measureText(text).width <= width) return text;
    const letters = Array.from(text);
    while (letters.length > 1 && context.measureText(`${letters.join("")}…`).width > width) letters.pop();
    return `${letters.join("")}…`;
  };

  class Panel {
    constructor(mode, place) {
      this.mode = mode;
      this.root = made("div", "panel");
      this.title = made("h3");
      this.map = made("div", "map");
      this.map.tabIndex = 0;
      this.map.id = `map-${place}`;
      this.map.setAttribute("role", "application");
      this.map.setAttribute("aria-roledescription", "attention map");
      this.base = made("canvas", "base");
      this.over = made("canvas", "over");
      this.map.append(this.base, this.over);
      this.legend = made("div", "scale");
      this.low = made("span");
      this.high = made("span");
      this.gradient = made("canvas");
      this.gradient.width = 256;
      this.gradient.height = 1;
      this.legend.append(this.low, this.gradient, this.high);
      this.root.append(this.title, this.map, this.legend);
      this.base.addEventListener("pointermove", (event) => hover(this.cellAt(event)));
      this.base.addEventListener("click", (event) => hold(this.cellAt(event)));
      this.map.addEventListener("keydown", (event) => mapKey(event));
    }

    draw(width) {
      const map = mapOf(state.call, state.head, this.mode);
      this.drawn = map.missing ? null : map;
      this.map.hidden = this.legend.hidden = Boolean(map.missing);
      this.title.replaceChildren(made("b", "", map.missing ? modeTitle(this.mode) : map.title));
      if (map.missing) {
        this.title.append(made("span", "", map.missing));
        return;
      }
      this.title.append(made("span", "", map.of ? `${map.unit}, ${map.of}` : map.unit));
      this.map.setAttribute("aria-label", `${map.title}: ${map.rows} rows that attend, ${map.columns} columns attended to. Arrow keys move.`);
      this.limit = limits(map, asideOf(), this.mode, state.head);
      this.queries = queriesOf();
      this.keys = keysOf();
      this.shape = state.view === "links" ? new Links(this) : new Cells(this);
      this.shape.measure(width);
      this.shape.paint();
      this.drawLegend();
      this.mark();
    }

    mark() {
      // The row and column that are looked at, over the map, so that the map need not be drawn again.
      if (!this.drawn) return;
      const row = Math.min(state.row, this.drawn.rows - 1), column = Math.min(state.column, this.drawn.columns - 1);
      const context = this.over.getContext("2d");
      context.clearRect(0, 0, this.over.width, this.over.height);
      this.shape.mark(context, row, column);
    }

    cellAt(event) {
      if (!this.drawn) return null;
      const box = this.base.getBoundingClientRect();
      return this.shape.cellAt(event.clientX - box.left, event.clientY - box.top);
    }

    drawLegend() {
      const ramp = rampOf(this.drawn), context = this.gradient.getContext("2d"), line = context.createImageData(256, 1);
      new Uint32Array(line.data.buffer).set(ramp.pixels);
      context.putImageData(line, 0, 0);
      const most = this.limit.length ? Math.max(...this.limit) : 0, signed = this.drawn.signed, row = state.scale === "row";
      const told = this.mode === "difference" ? (v) => percent(v, true) : short;
      this.low.textContent = row ? (signed ? "−" : "0") : signed ? told(-most) : "0";
      this.high.textContent = row ? "each row’s largest" : told(most);
    }
  }

  class Shape {
    // How a panel draws its map: what the two ways of drawing share.
    constructor(panel) {
      this.panel = panel;
      const { drawn, queries, keys, limit, base, over } = panel;
      Object.assign(this, { drawn, queries, keys, limit, base, over });
    }

    fit(width, height) {
      this.width = width;
      this.height = height;
      const ratio = Math.min(window.devicePixelRatio || 1, 8000 / Math.max(width, height));
      for (const canvas of [this.base, this.over]) {
        canvas.width = Math.round(width * ratio);
        canvas.height = Math.round(height * ratio);
        canvas.style.width = `${width}px`;
        canvas.style.height = `${height}px`;
        canvas.getContext("2d").setTransform(ratio, 0, 0, ratio, 0, 0);
      }
    }

    widest(axis, n, most) {
      const context = this.base.getContext("2d");
      context.font = `${this.size}px ${FONT}`;
      let widest = 0;
      for (let i = 0; i < n; i++) widest = Math.max(widest, context.measureText(nameOf(axis, i)).width);
      return Math.min(most, Math.ceil(widest)) + 10;
    }

    shownParts() {
      // What the threshold is held against; null where there is none.
      if (state.threshold <= 0) return null;
      return this.drawn.signed ? this.drawn.values : shares(this.drawn, asideOf());
    }

    pair(row, column) {
      // A row or a column of -1 is the partner of the other: a pointer on a label means the token itself.
      const { rowOf, columnOf } = current.partners;
      if (row < 0) return { column, row: rowOf[column] >= 0 ? rowOf[column] : state.row };
      if (column < 0) return { row, column: columnOf[row] >= 0 ? columnOf[row] : state.column };
      return { row, column };
    }
  }

  class Cells extends Shape {
    // A cell for each row and column.
    measure(width) {
      const { rows, columns } = this.drawn;
      const rough = Math.min(34, (width - 60) / columns, Math.max(720 / rows, 1));
      this.size = Math.max(9.5, Math.min(12.5, rough * 0.72));
      this.left = this.widest(this.queries, rows, 104);
      this.top = this.widest(this.keys, columns, 104);
      this.cell = Math.max(1, Math.min(34, (width - this.left - 2) / columns, Math.max(720 / rows, 1)));
      if (this.cell > 3) this.cell = Math.floor(this.cell * 2) / 2;
      this.fit(Math.ceil(this.left + this.cell * columns) + 2, Math.ceil(this.top + this.cell * rows) + 2);
    }

    paint() {
      const { rows, columns } = this.drawn, context = this.base.getContext("2d"), { cell, left, top } = this;
      context.clearRect(0, 0, this.width, this.height);
      context.imageSmoothingEnabled = false;
      this.picture = picture(this.cells(), rows, columns);
      context.drawImage(this.picture, left, top, cell * columns, cell * rows);
      if (cell >= 8) {
        context.fillStyle = surface.paper;
        const gap = cell >= 16 ? 1 : 0.5;
        for (let c = 1; c < columns; c++) context.fillRect(left + c * cell - gap / 2, top, gap, cell * rows);
        for (let r = 1; r < rows; r++) context.fillRect(left, top + r * cell - gap / 2, cell * columns, gap);
      }
      context.fillStyle = surface.muted;
      for (const column of asideOf()) hatch(context, left + column * cell, top, cell, cell * rows);
      this.divide(context);
      context.fillStyle = surface.ink;
      context.font = `${this.size}px ${FONT}`;
      this.named("row").forEach((row) => this.write(context, "row", row));
      this.named("column").forEach((column) => this.write(context, "column", column));
    }

    cells() {
      const { values, rows, columns, signed } = this.drawn, aside = asideOf(), pixels = new Uint32Array(values.length);
      const ramp = rampOf(this.drawn).pixels, empty = pixelOf(surface.panel), blank = ramp[signed ? 128 : 0];
      const part = this.shownParts(), least = state.threshold / 100;
      for (let row = 0, i = 0; row < rows; row++) {
        const limit = this.limit[row];
        for (let c = 0; c < columns; c++, i++) {
          pixels[i] = aside.has(c) ? empty : part && Math.abs(part[i]) < least ? blank : ramp[step(values[i], limit, signed)];
        }
      }
      return pixels;
    }

    divide(context) {
      // Between prompt and generated tokens.
      const { rows, columns } = this.drawn, row = generatedFrom(this.queries), column = generatedFrom(this.keys);
      context.strokeStyle = surface.ink;
      context.setLineDash([5, 4]);
      context.lineWidth = 1.2;
      context.beginPath();
      if (row > 0) {
        context.moveTo(0, this.top + row * this.cell);
        context.lineTo(this.left + columns * this.cell, this.top + row * this.cell);
      }
      if (column > 0) {
        context.moveTo(this.left + column * this.cell, 0);
        context.lineTo(this.left + column * this.cell, this.top + rows * this.cell);
      }
      context.stroke();
      context.setLineDash([]);
    }

    named(axis) {
      // All tokens where there is room, else those that receive most, as far apart as letters need.
      const { values, rows, columns } = this.drawn, n = axis === "row" ? rows : columns, room = this.size * 1.12;
      if (this.cell >= room - 1.5) return [...Array(n).keys()];
      if (axis === "row" && (rows !== columns || this.queries !== this.keys)) {
        const every = Math.ceil(room / this.cell);
        return [...Array(n).keys()].filter((i) => i % every === 0);
      }
      const received = new Float64Array(columns);
      for (let i = 0; i < values.length; i++) received[i % columns] += Math.abs(values[i]);
      const order = [...received.keys()].sort((a, b) => received[b] - received[a]), chosen = [];
      for (const i of order) if (chosen.every((other) => Math.abs(i - other) * this.cell >= room)) chosen.push(i);
      return chosen;
    }

    write(context, axis, i) {
      const { cell, left, top, size } = this;
      context.textBaseline = "middle";
      if (axis === "row") {
        context.textAlign = "right";
        context.fillText(clip(context, nameOf(this.queries, i), left - 9), left - 6, top + (i + 0.5) * cell + 0.5);
        return;
      }
      context.save();
      context.translate(left + (i + 0.5) * cell + 0.5, top - 6);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(clip(context, nameOf(this.keys, i), top - 9), 0, 0);
      context.restore();
    }

    mark(context, row, column) {
      const { cell, left, top } = this, { rows, columns } = this.drawn;
      context.strokeStyle = surface.held;
      context.lineWidth = cell < 4 ? 1 : 1.5;
      const thick = Math.max(cell, 3), from = (i) => (i + 0.5) * cell - thick / 2;
      context.globalAlpha = 0.75;
      context.strokeRect(left, top + from(row), columns * cell, thick);
      context.strokeRect(left + from(column), top, thick, rows * cell);
      context.globalAlpha = 1;
      context.lineWidth = 2;
      if (cell >= 4) context.strokeRect(left + from(column), top + from(row), thick, thick);
      context.font = `650 ${this.size}px ${FONT}`;
      const band = Math.max(cell, this.size * 1.35);
      context.fillStyle = surface.held;
      context.fillRect(0, top + (row + 0.5) * cell - band / 2, left - 2, band);
      context.fillRect(left + (column + 0.5) * cell - band / 2, 0, band, top - 2);
      context.fillStyle = surface.paper;
      this.write(context, "row", row);
      this.write(context, "column", column);
      if (cell < 3 && Math.min(rows, columns) * cell > 400 && state.pointed) this.magnify(context, row, column);
    }

    magnify(context, row, column) {
      // What lies around the chosen cell, where cells are too small to be seen: in the half of the map away from it.
      const around = 6, side = 132, { rows, columns } = this.drawn, whole = 2 * around + 1;
      const x = column * this.cell < (columns * this.cell) / 2 ? this.left + columns * this.cell - side - 8 : this.left + 8;
      const y = Math.max(this.top + 8, Math.min(this.top + rows * this.cell - side - 8, this.top + row * this.cell - side / 2));
      context.save();
      context.fillStyle = surface.paper;
      context.fillRect(x - 3, y - 3, side + 6, side + 6);
      context.imageSmoothingEnabled = false;
      context.drawImage(this.picture, column - around, row - around, whole, whole, x, y, side, side);
      context.strokeStyle = surface.held;
      context.lineWidth = 1.5;
      context.strokeRect(x - 3, y - 3, side + 6, side + 6);
      context.strokeRect(x + (around * side) / whole, y + (around * side) / whole, side / whole, side / whole);
      context.restore();
    }

    cellAt(x, y) {
      const column = Math.floor((x - this.left) / this.cell), row = Math.floor((y - this.top) / this.cell);
      if (row >= this.drawn.rows || column >= this.drawn.columns || (row < 0 && column < 0)) return null;
      return this.pair(Math.max(row, -1), Math.max(column, -1));
    }
  }

  class Links extends Shape {
    // Two columns of tokens, those that attend on the left, and a line for each pair, the stronger the more there is.
    measure(width) {
      const { rows, columns } = this.drawn, most = Math.max(rows, columns);
      this.step = most > 120 ? 13 : most > 40 ? 16 : 20;
      this.size = Math.min(12.5, this.step * 0.78);
      this.left = this.widest(this.queries, rows, 120);
      this.right = this.widest(this.keys, columns, 120);
      this.middle = Math.max(70, Math.min(320, width - this.left - this.right - 2));
      this.top = this.step;
      this.fit(this.left + this.middle + this.right, most * this.step + this.top + 4);
    }

    y(i) {
      return this.top + (i + 0.5) * this.step;
    }

    paint() {
      const context = this.base.getContext("2d"), { values, rows, columns } = this.drawn, aside = asideOf();
      const part = this.shownParts(), least = state.threshold / 100;
      context.clearRect(0, 0, this.width, this.height);
      context.font = `${Math.min(this.size, 11)}px ${FONT}`;
      context.fillStyle = surface.muted;
      context.textBaseline = "middle";
      context.textAlign = "left";
      context.fillText("attends", 2, this.top / 2);
      context.textAlign = "right";
      context.fillText("attended to", this.width - 2, this.top / 2);
      const faintest = values.length > 20000 ? 0.08 : 0.02; // of the largest: what lies below is not seen among the rest
      for (let row = 0, i = 0; row < rows; row++)
        for (let column = 0; column < columns; column++, i++)
          if (!aside.has(column) && !(part && Math.abs(part[i]) < least)) this.line(context, row, column, faintest, 0.8);
      this.tokens(context, () => null);
    }

    line(context, row, column, faintest, strength) {
      const value = this.drawn.values[row * this.drawn.columns + column], limit = this.limit[row];
      const part = limit > 0 ? Math.min(1, Math.abs(value) / limit) : 0;
      if (part < faintest) return;
      const ramp = rampOf(this.drawn).css, x = this.left + this.middle;
      context.strokeStyle = this.drawn.signed ? ramp[value < 0 ? 20 : 235] : ramp[surface.dark ? 165 : 180];
      context.globalAlpha = Math.min(1, part * strength);
      context.lineWidth = 0.6 + 2.4 * part;
      context.beginPath();
      context.moveTo(this.left, this.y(row));
      context.bezierCurveTo(this.left + this.middle * 0.4, this.y(row), x - this.middle * 0.4, this.y(column), x, this.y(column));
      context.stroke();
      context.globalAlpha = 1;
    }

    tokens(context, shade) {
      context.font = `${this.size}px ${FONT}`;
      for (let row = 0; row < this.drawn.rows; row++) this.token(context, "row", row, shade("row", row));
      for (let column = 0; column < this.drawn.columns; column++) this.token(context, "column", column, shade("column", column));
    }

    token(context, side, i, place) {
      const attends = side === "row", x = attends ? 0 : this.left + this.middle, room = attends ? this.left : this.right;
      const ramp = rampOf(this.drawn);
      if (place === undefined) return;
      if (place !== null) {
        context.fillStyle = place < 0 ? surface.held : ramp.css[place];
        context.fillRect(attends ? 0 : x + 2, this.y(i) - this.step / 2 + 0.5, room - 2, this.step - 1);
      }
      context.fillStyle = place === null ? surface.ink : place < 0 ? surface.paper : ramp.ink[place];
      context.textAlign = attends ? "right" : "left";
      context.textBaseline = "middle";
      const name = nameOf(attends ? this.queries : this.keys, i);
      context.fillText(clip(context, name, room - 9), attends ? this.left - 6 : x + 6, this.y(i) + 0.5);
    }

    mark(context, row, column) {
      const { values, rows, columns, signed } = this.drawn, aside = asideOf();
      context.fillStyle = surface.paper;
      context.globalAlpha = 0.88;
      context.fillRect(this.left, this.top, this.middle, this.height);
      context.globalAlpha = 1;
      for (let r = 0; r < rows; r++) if (r !== row && !aside.has(column)) this.line(context, r, column, 0.004, 0.45);
      for (let c = 0; c < columns; c++) if (!aside.has(c)) this.line(context, row, c, 0.004, 1);
      const taken = (r, c) => (aside.has(c) ? undefined : step(values[r * columns + c], this.limit[r], signed));
      this.tokens(context, (side, i) => {
        if (i === (side === "row" ? row : column)) return -1;
        return side === "row" ? taken(i, column) : taken(row, i);
      });
    }

    cellAt(x, y) {
      const i = Math.floor((y - this.top) / this.step), attends = x < this.left + this.middle / 2;
      if (i < 0 || i >= (attends ? this.drawn.rows : this.drawn.columns)) return null;
      return attends ? this.pair(i, -1) : this.pair(-1, i);
    }
  }

  function hatch(context, x, y, width, height) {
    context.save();
    context.beginPath();
    context.rect(x, y, width, height);
    context.clip();
    context.strokeStyle = surface.line;
    context.lineWidth = 1;
    context.beginPath();
    for (let step = -width; step < height; step += 6) {
      context.moveTo(x, y + step + width);
      context.lineTo(x + width, y + step);
    }
    context.stroke();
    context.restore();
  }

  function picture(pixels, rows, columns) {
    const canvas = made("canvas");
    canvas.width = columns;
    canvas.height = rows;
    const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
    new Uint32Array(image.data.buffer).set(pixels);
    context.putImageData(image, 0, 0);
    return canvas;
  }

  const modeTitle = (mode) => (MODES.find((one) => one.id === mode) || { title: mode }).title;

  // ---- at a glance

  const MOST_PIXELS = 48;
  let thumbs = []; // {button, canvas, call, head}
  function buildAtlas() {
    const atlas = at("atlas");
    atlas.replaceChildren();
    thumbs = [];
    const groups = new Map();
    content.calls.forEach((call, i) => {
      if (!stored(i)) return;
      const key = `${call.kind} ${call.group}`;
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(i);
    });
    for (const calls of groups.values()) {
      const { kind, group } = content.calls[calls[0]], heads = Math.max(...calls.map((i) => content.calls[i].heads.length));
      const block = made("div", "block"), title = made("div", "group", `${{ self: "Self-attention", causal: "Causal self-attention", cross: "Cross-attention" }[kind] || kind} `);
      title.append(made("code", "", group));
      block.setAttribute("role", "grid");
      block.setAttribute("aria-label", `${title.textContent}: calls by heads`);
      const longest = calls.reduce((a, b) => (content.calls[a].heads.length >= content.calls[b].heads.length ? a : b));
      block.append(atlasLine(["head", "all", ...content.calls[longest].heads], heads));
      calls.forEach((i) => block.append(atlasRow(i, heads)));
      atlas.append(title, block);
    }
  }

  function atlasLine(cells, heads) {
    const line = made("div", "line heads");
    line.setAttribute("aria-hidden", "true");
    sizeLine(line, heads);
    cells.forEach((text, i) => line.append(made("span", i ? "" : "name", text)));
    return line;
  }
  function sizeLine(line, heads) {
    line.style.setProperty("--heads", heads + 1);
    line.style.setProperty("--thumb", heads > 20 ? "14px" : heads > 10 ? "12.5px" : "18px");
  }

  function atlasRow(call, heads) {
    const line = made("div", "line"), told = content.calls[call];
    line.setAttribute("role", "row");
    sizeLine(line, heads);
    const name = made("span", "name", told.label);
    name.title = told.name;
    name.setAttribute("role", "rowheader");
    line.append(name);
    for (const head of [ALL, ...told.heads.keys()]) {
      const button = made("button", head === ALL ? "thumb all" : "thumb"), canvas = made("canvas");
      button.type = "button";
      button.tabIndex = -1;
      button.setAttribute("role", "gridcell");
      const named = head === ALL ? "all heads" : `head ${told.heads[head]}`;
      button.setAttribute("aria-label", `${callTitle(call)}, ${named}`);
      button.title = `${callTitle(call)}, ${named}`;
      button.append(canvas);
      button.addEventListener("click", () => choose({ call, head }));
      button.addEventListener("keydown", (event) => atlasKey(event));
      line.append(button);
      thumbs.push({ button, canvas, call, head });
    }
    return line;
  }
  const callTitle = (call) => {
    const { label, kind } = content.calls[call];
    const name = /^[\d.]+$/.test(label) ? `Layer ${label}` : label.charAt(0).toUpperCase() + label.slice(1);
    return kind === "self" ? name : `${name}, ${kind === "causal" ? "causal" : "cross-attention"}`;
  };

  let drawing = 0;
  async function drawThumbs() {
    const turn = ++drawing;
    let since = performance.now();
    for (const thumb of thumbs) {
      if (!arraysOf(thumb.call)) await load(thumb.call);
      if (turn !== drawing) return;
      drawThumb(thumb);
      if (performance.now() - since > 50) {
        await new Promise(requestAnimationFrame);
        if (turn !== drawing) return;
        since = performance.now();
      }
    }
    document.documentElement.dataset.drawn = "yes";
  }

  function drawThumb({ button, canvas, call, head }) {
    const mode = mainMode(), map = mapOf(call, head, mode);
    button.classList.toggle("none", Boolean(map.missing));
    if (map.missing) {
      canvas.width = canvas.height = 1;
      return;
    }
    const { pixels, rows, columns } = pooled(map, asideOf(call), mode, head);
    canvas.width = columns;
    canvas.height = rows;
    // Kept in memory and not on the graphics card: a thousand canvases there take seconds to draw.
    const context = canvas.getContext("2d", { willReadFrequently: true }), image = context.createImageData(columns, rows);
    new Uint32Array(image.data.buffer).set(pixels);
    context.putImageData(image, 0, 0);
  }

  function pooled(map, aside, mode, head) {
    // At most 48 × 48 pixels; each shows the largest of its cells, so that nothing sharp is lost.
    const rows = Math.min(map.rows, MOST_PIXELS), columns = Math.min(map.columns, MOST_PIXELS);
    const most = new Float32Array(rows * columns), limit = limits(map, aside, mode, head), ramp = rampOf(map).pixels;
    const columnOf = Array.from({ length: map.columns }, (_, c) => Math.floor((c * columns) / map.columns));
    for (let r = 0, i = 0; r < map.rows; r++) {
      const from = Math.floor((r * rows) / map.rows) * columns, scale = limit[r] > 0 ? 1 / limit[r] : 0;
      for (let c = 0; c < map.columns; c++, i++) {
        const value = map.values[i] * scale, place = from + columnOf[c];
        if (Math.abs(value) > Math.abs(most[place]) && !(aside.size && aside.has(c))) most[place] = value;
      }
    }
    const pixels = new Uint32Array(rows * columns);
    for (let i = 0; i < pixels.length; i++) pixels[i] = ramp[step(most[i], 1, map.signed)];
    return { pixels, rows, columns };
  }

  // ---- the token: where it looks, what it takes, who takes from it

  const LONGEST = 10;
  class List {
    constructor(axis) {
      this.axis = axis; // what its entries are: columns of a row, or rows of a column
      this.root = made("div", "list");
      this.title = made("h3");
      this.name = document.createElement("bdi");
      this.before = document.createTextNode("");
      this.after = document.createTextNode("");
      this.title.append(this.before, this.name, this.after);
      this.rest = made("div", "rest");
      this.entries = Array.from({ length: LONGEST }, () => this.entry());
      this.root.append(this.title, ...this.entries.map((entry) => entry.button), this.rest);
      at("lists").append(this.root);
    }

    entry() {
      const button = made("button", "entry"), name = made("bdi"), place = made("small"), label = made("span", "label"), bars = made("div", "bars"), figures = made("div", "figures");
      button.type = "button";
      const kinds = ["weight", "norm", "share"];
      const bar = kinds.map((kind) => made("i", kind)), figure = kinds.map((kind) => made("span", kind));
      bars.append(...bar);
      figures.append(...figure);
      label.append(name, place);
      button.append(label, bars, figures);
      const entry = { button, name, place, bar, figure, index: -1 };
      button.addEventListener("click", () => {
        hold(this.axis === "column" ? { row: state.row, column: entry.index } : { row: entry.index, column: state.column }, true);
      });
      return entry;
    }

    show(title, parts, axis, order) {
      // parts: by kind, a function from index to the share; order: what the list is sorted by.
      [this.before.data, this.name.textContent, this.after.data] = title;
      const n = order.length, best = [], least = state.threshold / 100;
      let rest = 0, others = 0;
      for (let i = 0; i < n; i++) {
        const size = Math.abs(order[i]);
        if (size < least || size === 0) {
          others += 1;
          rest += order[i];
          continue;
        }
        let place = best.length;
        while (place > 0 && Math.abs(order[best[place - 1]]) < size) place -= 1;
        if (place < LONGEST) best.splice(place, 0, i);
        if (best.length > LONGEST || place >= LONGEST) {
          const out = place >= LONGEST ? i : best.pop();
          others += 1;
          rest += order[out];
        }
      }
      let most = 1e-9;
      for (const i of best) for (const part of Object.values(parts)) most = Math.max(most, Math.abs(part[i] || 0));
      this.entries.forEach((entry, place) => this.fill(entry, best[place], parts, axis, most));
      const signed = current.main.map.signed && !current.main.map.missing;
      this.rest.textContent = others ? `${count(others, "other token")}${this.axis === "column" && !signed ? `, together ${percent(rest)}` : ""}` : "";
    }

    fill(entry, i, parts, axis, most) {
      entry.button.hidden = i === undefined;
      if (i === undefined) return;
      entry.index = i;
      entry.name.textContent = nameOf(axis, i);
      entry.place.textContent = axis.repeated[i] ? placeOf(axis, i) : "";
      ["weight", "norm", "share"].forEach((kind, place) => {
        const part = parts[kind], bar = entry.bar[place], figure = entry.figure[place];
        bar.hidden = figure.hidden = !part;
        if (!part) return;
        bar.style.width = `${(100 * Math.abs(part[i] || 0)) / most}%`;
        figure.textContent = percent(part[i] || 0);
      });
    }
  }
  let lists;

  // ---- the text, token by token, or the patches of a picture

  class Strip {
    constructor(name, axis) {
      this.root = at(`strip-${name}`);
      this.title = at(`strip-${name}-title`);
      this.box = at(`strip-${name}-tokens`);
      this.axis = axis;
      this.box.tabIndex = 0;
      this.box.addEventListener("keydown", (event) => this.key(event));
      this.box.addEventListener("pointerover", (event) => hover(this.tokenAt(event)));
      this.box.addEventListener("click", (event) => hold(this.tokenAt(event)));
    }

    build(told, columns) {
      const key = `${state.example} ${content.axes.indexOf(told)} ${columns}`;
      if (this.built === key) return;
      this.built = key;
      this.told = told;
      this.size = columns;
      this.chips = [];
      this.steps = [];
      this.box.replaceChildren();
      this.box.setAttribute("role", "listbox");
      this.box.setAttribute("aria-label", this.axis === "column" ? "Tokens attended to" : "Tokens that attend");
      this.patches = told.grid ? new Patches(told, this) : null;
      if (this.patches) this.box.append(this.patches.root);
      const glued = new Set(told.glued), generated = generatedFrom(told), parts = document.createDocumentFragment();
      for (let i = 0; i < columns; i++) {
        if (this.patches && told.places[i] >= 0) continue;
        if (i === generated) parts.append(made("span", "break", "generated"));
        const chip = made("span", "chip", nameOf(told, i));
        chip.id = `${this.axis}-${i}`;
        chip.dataset.token = i;
        chip.setAttribute("role", "option");
        if (glued.has(i)) chip.classList.add("glued");
        if (generated > 0 && i < generated) chip.classList.add("prompt");
        this.chips[i] = chip;
        parts.append(chip);
      }
      this.box.append(parts);
    }

    show(title, values, limit, ramp, signed) {
      [this.title.firstChild.data, this.title.children[0].textContent, this.title.lastChild.data] = title;
      const aside = this.axis === "column" ? asideOf() : null, chosen = this.axis === "column" ? state.column : state.row;
      this.chips.forEach((chip, i) => {
        // A quarter of the steps: fewer tokens change their colour when the pointer moves.
        const place = aside && aside.has(i) ? -1 : Math.min(255, 4 * Math.round(step(values[i], limit, signed) / 4));
        if (this.steps[i] !== place || this.ramp !== ramp) {
          this.steps[i] = place;
          chip.style.backgroundColor = place < 0 ? "transparent" : ramp.css[place];
          chip.style.color = place < 0 ? "" : ramp.ink[place];
          chip.classList.toggle("aside", place < 0);
        }
      });
      this.ramp = ramp;
      if (this.patches) this.patches.paint(values, limit, ramp, signed, chosen);
      if (this.chosen) {
        this.chosen.classList.remove("chosen");
        this.chosen.removeAttribute("aria-selected");
      }
      this.chosen = this.chips[chosen];
      if (this.chosen) {
        this.chosen.classList.add("chosen");
        this.chosen.setAttribute("aria-selected", "true");
        this.box.setAttribute("aria-activedescendant", this.chosen.id);
      }
    }

    bring() {
      // The chosen token into view, inside the box only.
      if (!this.chosen) return;
      const { offsetTop, offsetHeight } = this.chosen, { scrollTop, clientHeight } = this.box;
      if (offsetTop < scrollTop) this.box.scrollTop = offsetTop - 6;
      else if (offsetTop + offsetHeight > scrollTop + clientHeight) this.box.scrollTop = offsetTop + offsetHeight - clientHeight + 6;
    }

    tokenAt(event) {
      const chip = event.target.closest && event.target.closest(".chip");
      return chip ? this.cell(Number(chip.dataset.token)) : null;
    }

    cell(token) {
      const { rowOf, columnOf } = current.partners;
      if (this.axis === "row") return { row: token, column: columnOf[token] >= 0 ? columnOf[token] : state.column };
      return { column: token, row: rowOf[token] >= 0 ? rowOf[token] : state.row };
    }

    key(event) {
      const chosen = this.axis === "column" ? state.column : state.row, last = this.size - 1;
      const across = this.patches ? this.told.grid[1] : 1;
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across };
      const target = event.key === "Home" ? 0 : event.key === "End" ? last : event.key in moves ? chosen + moves[event.key] : null;
      if (event.key === "Enter" || event.key === " ") return swallow(event, () => hold(this.cell(chosen)));
      if (target === null) return;
      swallow(event, () => {
        move(this.cell(Math.max(0, Math.min(last, target))));
        strips.forEach((strip) => strip.bring());
      });
    }
  }
  let strips;

  class Patches {
    // A picture with a heat map over it, a patch for each token that has a place in the grid.
    constructor(told, strip) {
      [this.high, this.wide] = told.grid;
      this.told = told;
      this.root = made("div", "picture");
      this.canvas = made("canvas");
      this.root.append(this.canvas);
      this.tokenOf = new Map(told.places.map((place, i) => [place, i]).filter(([place]) => place >= 0));
      const find = (event) => {
        const box = this.canvas.getBoundingClientRect();
        const x = Math.floor(((event.clientX - box.left) / box.width) * this.wide), y = Math.floor(((event.clientY - box.top) / box.height) * this.high);
        const token = this.tokenOf.get(y * this.wide + x);
        return token === undefined ? null : strip.cell(token);
      };
      this.canvas.addEventListener("pointermove", (event) => hover(find(event)));
      this.canvas.addEventListener("click", (event) => hold(find(event)));
      this.grey = null;
      this.fit(this.wide, this.high);
      const uri = example().picture;
      if (!uri) return;
      const image = new Image();
      image.onload = () => {
        this.fit(image.naturalWidth, image.naturalHeight);
        const context = this.canvas.getContext("2d", { willReadFrequently: true });
        context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
        const { data } = context.getImageData(0, 0, this.canvas.width, this.canvas.height);
        this.grey = Float32Array.from({ length: data.length / 4 }, (_, i) => 0.299 * data[4 * i] + 0.587 * data[4 * i + 1] + 0.114 * data[4 * i + 2]);
        if (this.last) this.paint(...this.last);
      };
      image.src = uri;
    }

    fit(width, height) {
      // A whole number of pixels to a patch.
      const side = Math.max(1, Math.round(320 / this.wide));
      this.canvas.width = side * this.wide;
      this.canvas.height = Math.max(1, Math.round((this.canvas.width * height) / width / this.high)) * this.high;
    }

    paint(values, limit, ramp, signed, chosen) {
      this.last = [values, limit, ramp, signed, chosen];
      const { canvas, high, wide, grey } = this, context = canvas.getContext("2d", { willReadFrequently: true });
      const image = context.createImageData(canvas.width, canvas.height), pixels = image.data;
      const tall = canvas.height / high, broad = canvas.width / wide;
      const steps = Array.from({ length: high * wide }, (_, place) => {
        const token = this.tokenOf.get(place);
        return token === undefined ? -1 : step(values[token], limit, signed);
      });
      for (let y = 0, i = 0; y < canvas.height; y++) {
        const from = Math.floor(y / tall) * wide;
        for (let x = 0; x < canvas.width; x++, i++) {
          const place = steps[from + Math.floor(x / broad)];
          const part = place < 0 ? 0 : signed ? Math.abs(place - 128) / 128 : place / 255;
          const strength = grey ? (place < 0 ? 0 : 0.12 + 0.8 * Math.sqrt(part)) : place < 0 ? 0 : 1;
          const pale = grey ? (surface.dark ? 14 + 0.5 * grey[i] : 255 - 0.62 * (255 - grey[i])) : surface.dark ? 24 : 246;
          const colour = place < 0 ? [0, 0, 0] : ramp.colours[place];
          for (let c = 0; c < 3; c++) pixels[4 * i + c] = pale + (colour[c] - pale) * strength;
          pixels[4 * i + 3] = 255;
        }
      }
      context.putImageData(image, 0, 0);
      const place = this.told.places[chosen];
      if (place === undefined || place < 0) return;
      context.lineWidth = 2;
      const x = (place % wide) * broad, y = Math.floor(place / wide) * tall;
      context.strokeStyle = surface.paper;
      context.strokeRect(x - 1, y - 1, broad + 2, tall + 2);
      context.strokeStyle = surface.held;
      context.strokeRect(x + 1, y + 1, broad - 2, tall - 2);
    }
  }

  // ---- what is shown now

  let panels = [];
  const current = { partners: { rowOf: [], columnOf: [] }, main: { map: { missing: "" } } };

  async function load(call) {
    const of = state.example;
    if (!decoded[of][call] && content.examples[of].maps[call]) decoded[of][call] = await decode(content.examples[of].maps[call]);
  }

  async function choose(change, told = true) {
    const before = { example: state.example, mode: state.mode, scale: state.scale };
    const rows = { ...state };
    Object.assign(state, change);
    if (!stored()) state.call = Math.max(0, example().maps.findIndex(Boolean));
    state.head = state.head === ALL ? ALL : Math.min(state.head, content.calls[state.call].heads.length - 1);
    await load(state.call);
    if (state.example !== before.example) start();
    const n = { row: queriesOf().written.length, column: keysOf().written.length };
    if (change.call !== undefined && rows.call !== state.call) state.column = Math.min(state.column, n.column - 1);
    state.row = Math.min(state.row, n.row - 1);
    if (state.scale === "all") await Promise.all(content.calls.map((_, call) => load(call)));
    drawLarge();
    if (state.example !== before.example) buildAtlas();
    selectThumb(told === "focus");
    if (["example", "mode", "scale"].some((name) => state[name] !== before[name]) || told === "draw") drawThumbs();
    if (told === true || told === "focus") say(`${callTitle(state.call)}, ${headsChosen()}, ${modeTitle(state.mode)}`);
  }

  function start() {
    // The first token, and the last in a decoder: what it looks at is what it writes next.
    state.row = content.calls[state.call].kind === "causal" ? queriesOf().written.length - 1 : 0;
    const { columnOf } = partners(state.call);
    state.column = Math.max(0, columnOf[state.row] ?? 0);
    state.held = false;
  }

  function selectThumb(focus) {
    for (const { button, call, head } of thumbs) {
      const chosen = call === state.call && head === state.head;
      button.setAttribute("aria-selected", chosen);
      button.tabIndex = chosen ? 0 : -1;
      if (chosen && focus) button.focus({ preventScroll: false });
    }
  }

  function drawLarge() {
    const aside = asideOf(), mode = mainMode();
    current.partners = partners(state.call);
    const load = (name) => {
      const map = mapOf(state.call, state.head, name);
      return map.missing ? { map } : { map, parts: map.signed && name === "difference" ? map.values : shares(map, aside) };
    };
    current.weight = hasWeight ? load("weight") : null;
    current.norm = hasNorm ? load("norm") : null;
    current.main = mode === "weight" ? current.weight : mode === "norm" ? current.norm : load(mode);
    if (current.main.map.missing && state.mode === "both" && current.weight && !current.weight.map.missing) current.main = current.weight;
    const map = current.main.map;
    current.limits = map.missing ? null : limits(map, aside, mode, state.head);
    current.received = map.missing ? null : mostOfColumns(map, aside);
    writeHeading();
    const wanted = state.mode === "both" ? ["weight", "norm"] : [state.mode];
    if (panels.map((panel) => panel.mode).join() !== wanted.join()) {
      panels = wanted.map((name, place) => new Panel(name, place));
      at("panels").replaceChildren(...panels.map((panel) => panel.root));
    }
    drawPanels();
    strips[0].build(keysOf(), map.missing ? keysOf().written.length : map.columns);
    strips[1].build(queriesOf(), queriesOf().written.length);
    at("reading").classList.toggle("pictures", Boolean(strips[0].patches && strips[1].patches));
    strips.forEach((strip) => (strip.ramp = null));
    showToken();
  }

  function drawPanels() {
    const room = at("panels").clientWidth, half = (room - 26) / 2;
    const cell = (half - 70) / keysOf().written.length;
    const beside = panels.length > 1 && half >= 240 && (state.view === "links" || cell >= (room >= 620 ? 1 : 7));
    for (const panel of panels) panel.draw(beside ? half : room);
  }

  function mostOfColumns(map) {
    const most = new Float32Array(map.columns);
    for (let i = 0; i < map.values.length; i++) most[i % map.columns] = Math.max(most[i % map.columns], Math.abs(map.values[i]));
    return most;
  }

  function writeHeading() {
    const told = content.calls[state.call], exact = told.error <= told.tolerance;
    at("large-title").textContent = `${callTitle(state.call)}, ${headsChosen()}`;
    at("large-note").textContent = `${told.name || "unnamed"} · ${exact ? "read exactly" : "not read exactly"}: error ${short(told.error)} (allowed ${short(told.tolerance)})`;
    const asideNames = [...asideOf()].sort((a, b) => a - b).map((i) => nameOf(keysOf(), i));
    at("legend-note").textContent = [
      state.view === "map" ? "Rows attend, columns are attended to." : "",
      state.view === "links" ? "Lines into the chosen token are paler than those from it." : "",
      state.threshold ? `Cells below ${state.threshold} % of their row are left empty.` : "",
      asideNames.length ? `Set aside, in no scale and no share: ${asideNames.join(", ")}.` : "",
      generatedFrom(keysOf()) > 0 ? "The dashed line stands between the prompt and what was generated." : "",
    ].filter(Boolean).join(" ");
    const modes = [...at("modes").children], one = modes.find((button) => button.dataset.mode === state.mode);
    modes.forEach((button) => button.setAttribute("aria-checked", button === one));
    modes.forEach((button) => (button.tabIndex = button === (one || modes[0]) ? 0 : -1));
    at("more").value = one ? "" : state.mode;
    for (const button of at("views").children) button.setAttribute("aria-pressed", button.dataset.view === state.view);
    at("scale").value = state.scale;
    at("threshold").value = state.threshold;
    at("threshold-value").textContent = `${state.threshold} %`;
    at("glance-note").textContent = `${modeTitle(mainMode())}, ${state.scale === "all" ? "one scale for all" : "each to its own largest"}`;
    if (at("example").options.length) at("example").value = state.example;
  }

  const part = (values, columns, axis, i, n) => {
    if (axis === "row") return values.subarray(i * columns, (i + 1) * columns);
    const column = new Float32Array(n);
    for (let row = 0; row < n; row++) column[row] = values[row * columns + i];
    return column;
  };

  const DOING = {
    weight: [["Where ", " looks"], ["Who looks at ", ""]],
    norm: [["What ", " takes from each token"], ["Who takes from ", ""]],
    difference: [["What ", " takes beyond what it looks at (orange), or short of it (blue)"], ["Who takes more (orange) or less (blue) than it looks at ", ""]],
  };
  const doing = (mode, axis) => (DOING[mode] || [["From where ", " is made"], ["Who is made of ", ""]])[axis];

  function showToken() {
    const { main, weight, norm } = current, map = main.map, mode = main === weight ? "weight" : mainMode();
    panels.forEach((panel) => panel.mark());
    const queries = queriesOf(), keys = keysOf(), row = state.row;
    const column = map.missing ? state.column : Math.min(state.column, map.columns - 1);
    const rowName = nameOf(queries, row), columnName = nameOf(keys, column);
    at("token-title").replaceChildren(bdi(rowName), document.createTextNode(" → "), bdi(columnName));
    at("cell-note").textContent = cellNote(row, column);
    at("token-note").textContent = tokenNote(row, column);
    at("lists").hidden = at("reading").hidden = Boolean(map.missing);
    if (map.missing) return;
    const n = { row: map.rows, column: map.columns };
    const shown = { weight, norm, share: [weight, norm].includes(main) || mode === "difference" ? null : main };
    explainBars(shown, mode);
    const partsOf = (axis, i) => Object.fromEntries(Object.entries(shown)
      .filter(([, found]) => found && !found.map.missing && (axis === "row" || i < found.map.columns))
      .map(([kind, found]) => [kind, part(found.parts, found.map.columns, axis, i, n.row)]));
    const mine = (axis, i) => part(main.parts, map.columns, axis, i, n.row);
    const [looks, from] = doing(mode, 0), [who, end] = doing(mode, 1);
    lists[0].show([looks, rowName, mode === "norm" ? " takes from" : mode === "weight" ? " looks" : from], partsOf("row", row), keys, mine("row", row));
    lists[1].show([who, columnName, end], partsOf("column", column), queries, mine("column", column));
    const ramp = rampOf(map), byRow = part(map.values, map.columns, "row", row, n.row), byColumn = part(map.values, map.columns, "column", column, n.row);
    let most = 0;
    for (let i = 0; i < byRow.length; i++) if (!asideOf().has(i)) most = Math.max(most, Math.abs(byRow[i]));
    strips[0].show([looks, rowName, from], byRow, most, ramp, map.signed);
    strips[1].show([who, columnName, end], byColumn, current.received[column], ramp, map.signed);
  }

  function explainBars(shown, mode) {
    const kinds = Object.keys(shown).filter((kind) => shown[kind] && !shown[kind].map.missing), key = `${kinds} ${mode}`;
    if (current.bars === key) return;
    current.bars = key;
    at("bars-key").replaceChildren(...kinds.map((kind) => {
      const named = made("span");
      named.append(made("span", `dot ${kind}`), document.createTextNode(kind === "share" ? modeTitle(mode) : kind));
      return named;
    }), made("span", "", "in shares of the row"));
  }

  const bdi = (text) => made("bdi", "", text);

  function cellNote(row, column) {
    const told = [];
    for (const found of [current.weight, current.norm, current.main]) {
      if (!found || found.map.missing || column >= found.map.columns || told.some(([map]) => map === found.map)) continue;
      const value = found.map.values[row * found.map.columns + column];
      told.push([found.map, found.map.colours === "signed" ? `difference ${percent(value, true)}` : `${found.map.unit} ${short(value)}`]);
    }
    return told.map(([, text]) => text).join(" · ");
  }

  function tokenNote(row, column) {
    const raw = [[queriesOf(), row], [keysOf(), column]].map(([axis, i]) => {
      const token = axis.tokens[i], place = `position ${placeOf(axis, i)}`;
      return token !== undefined && token !== nameOf(axis, i) ? `${place}, in the vocabulary ${token}` : place;
    });
    return `${raw[0]} → ${raw[1]}${state.held ? " · held" : ""}`;
  }

  // ---- moving about

  let waiting = null;
  function hover(cell) {
    if (!cell || state.held || (cell.row === state.row && cell.column === state.column)) return;
    const first = !waiting;
    waiting = cell;
    if (first) requestAnimationFrame(() => {
      const target = waiting;
      waiting = null;
      if (state.held) return;
      Object.assign(state, target, { pointed: true });
      showToken();
    });
  }
  function hold(cell, always = false) {
    if (!cell) return;
    const same = state.held && cell.row === state.row && cell.column === state.column;
    Object.assign(state, cell, { held: always || !same, pointed: true });
    showToken();
    say(state.held ? `held: ${spoken()}` : "let go");
  }
  function move(cell) {
    Object.assign(state, cell, { held: true, pointed: true });
    showToken();
    say(spoken());
  }
  const spoken = () => `${nameOf(queriesOf(), state.row)} to ${nameOf(keysOf(), state.column)}: ${cellNote(state.row, state.column)}`;
  function say(text) {
    at("live").textContent = text;
  }
  function swallow(event, action) {
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  function mapKey(event) {
    const map = current.main.map;
    if (map.missing || event.ctrlKey || event.metaKey || event.altKey) return;
    const { row, column } = state, last = { row: map.rows - 1, column: map.columns - 1 };
    const targets = {
      ArrowLeft: { row, column: column - 1 }, ArrowRight: { row, column: column + 1 },
      ArrowUp: { row: row - 1, column }, ArrowDown: { row: row + 1, column },
      Home: { row, column: 0 }, End: { row, column: last.column }, PageUp: { row: row - 10, column }, PageDown: { row: row + 10, column },
    };
    if (event.key === "Enter" || event.key === " ") return swallow(event, () => hold({ row, column }));
    const target = targets[event.key];
    if (target) swallow(event, () => move({ row: Math.max(0, Math.min(last.row, target.row)), column: Math.max(0, Math.min(last.column, target.column)) }));
  }

  const callsShown = () => [...new Set(thumbs.map((thumb) => thumb.call))];
  const stepCall = (by) => {
    const calls = callsShown(), place = calls.indexOf(state.call) + by;
    return calls[Math.max(0, Math.min(calls.length - 1, place))];
  };
  const stepHead = (by) => Math.max(ALL, Math.min(content.calls[state.call].heads.length - 1, state.head + by));
  function atlasKey(event) {
    const last = content.calls[state.call].heads.length - 1;
    const changes = {
      ArrowLeft: () => ({ head: stepHead(-1) }), ArrowRight: () => ({ head: stepHead(1) }),
      ArrowUp: () => ({ call: stepCall(-1) }), ArrowDown: () => ({ call: stepCall(1) }),
      Home: () => ({ head: ALL }), End: () => ({ head: last }),
    };
    if (changes[event.key] && !event.ctrlKey && !event.metaKey && !event.altKey) swallow(event, () => choose(changes[event.key](), "focus"));
  }

  function setAside(column = state.column) {
    const aside = asideOf();
    if (column >= keysOf().written.length) return;
    if (!aside.delete(column)) aside.add(column);
    sharedLargest.clear();
    choose({}, "draw");
    say(`${nameOf(keysOf(), column)} ${aside.has(column) ? "set aside" : "taken back"}`);
  }
  const setThreshold = (value) => choose({ threshold: Math.max(0, Math.min(40, value)) }, false);
  const setMode = (id) => MODES.some((mode) => mode.id === id) && choose({ mode: id });
  function nextTheme() {
    const next = { auto: "light", light: "dark", dark: "auto" }[theme];
    try {
      localStorage.setItem("captum-norm-theme", next);
    } catch (error) { /* a page in a frame may keep nothing */ }
    setTheme(next);
    choose({}, "draw");
  }

  function pageKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented || at("help").open) return;
    if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) && event.key !== "Escape") return;
    if (event.key === "Escape") {
      state.held = false;
      return showToken();
    }
    if (!at("letters").checked) return;
    const mode = MODES.find((one) => one.key === event.key);
    const actions = {
      "[": () => choose({ call: stepCall(-1) }), "]": () => choose({ call: stepCall(1) }),
      ",": () => choose({ head: stepHead(-1) }), ".": () => choose({ head: stepHead(1) }),
      x: () => setAside(), l: () => choose({ view: state.view === "map" ? "links" : "map" }), "+": () => setThreshold(state.threshold + 1), "-": () => setThreshold(state.threshold - 1),
      e: () => choose({ example: (state.example + 1) % content.examples.length }), t: nextTheme, "?": () => at("help").showModal(),
    };
    const action = mode ? () => setMode(mode.id) : actions[event.key];
    if (action) swallow(event, action);
  }

  // ---- putting it together

  function buildModes() {
    const more = MODES.filter((mode) => !mode.key);
    at("more-choice").hidden = !more.length;
    for (const mode of more) {
      const option = made("option", "", mode.title);
      option.value = mode.id;
      at("more").append(option);
    }
    at("more").addEventListener("change", (event) => event.target.value && setMode(event.target.value));
    for (const button of at("views").children) button.addEventListener("click", () => choose({ view: button.dataset.view }));
    for (const mode of MODES.filter((one) => one.key)) {
      const button = made("button");
      button.type = "button";
      button.dataset.mode = mode.id;
      button.setAttribute("role", "radio");
      button.append(made("span", `dot ${mode.dot}`), document.createTextNode(mode.title));
      button.addEventListener("click", () => setMode(mode.id));
      button.addEventListener("keydown", (event) => {
        const by = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
        if (!by) return;
        const buttons = [...at("modes").children], next = buttons[(buttons.indexOf(button) + by + buttons.length) % buttons.length];
        swallow(event, () => {
          setMode(next.dataset.mode);
          next.focus();
        });
      });
      at("modes").append(button);
    }
  }

  function exampleName(given) {
    const first = given.maps.findIndex(Boolean), axis = first < 0 ? null : content.axes[given.maps[first].queries];
    const glued = new Set(axis ? axis.glued : []);
    const text = axis ? axis.written.slice(0, 14).map((token, i) => (i && !glued.has(i) ? ` ${token}` : token)).join("") : "";
    return `${given.number}: ${text.length > 44 ? `${text.slice(0, 43)}…` : text}`;
  }

  function writePage() {
    at("title").textContent = content.title;
    const calls = content.calls.length, tokens = queriesOf().written.length;
    at("subtitle").textContent = `${count(calls, "attention call")}, ${count(content.examples.length, "example")}, ${count(tokens, "token")} in this one`;
    content.examples.forEach((given, i) => {
      const option = made("option", "", exampleName(given));
      option.value = i;
      at("example").append(option);
    });
    at("example-choice").hidden = content.examples.length < 2;
    const worst = content.calls.reduce((a, b) => (a.error / a.tolerance >= b.error / b.tolerance ? a : b));
    at("certificate").textContent = `${count(calls, "attention call")} read, each checked against what the model computed: worst error ${short(worst.error)} (allowed ${short(worst.tolerance)}).`;
    at("precision").textContent = `Numbers are stored in ${content.bits} bits on a square-root scale: right to ${content.bits === 16 ? "0.002 %" : "0.4 %"} of each map’s largest, and closer where they are smaller.`;
    at("versions").textContent = Object.entries(content.versions).map(([name, version]) => `${name} ${version}`).join(" · ");
  }

  async function open() {
    let chosen = "auto";
    try {
      chosen = localStorage.getItem("captum-norm-theme") || "auto";
    } catch (error) { /* a page in a frame may keep nothing */ }
    setTheme(["auto", "light", "dark"].includes(chosen) ? chosen : "auto");
    if (typeof DecompressionStream === "undefined") {
      at("absent").hidden = false;
      at("absent").textContent = "This browser cannot read compressed numbers (DecompressionStream). Open the page in one from 2023 or later.";
      return;
    }
    state.call = Math.max(0, example().maps.findIndex(Boolean));
    await load(state.call);
    for (const name of ["keys", "queries"]) {
      at(`strip-${name}-title`).replaceChildren(document.createTextNode(""), bdi(""), document.createTextNode(""));
    }
    strips = [new Strip("keys", "column"), new Strip("queries", "row")];
    lists = [new List("column"), new List("row")];
    start();
    buildModes();
    writePage();
    buildAtlas();
    at("scale").addEventListener("change", (event) => choose({ scale: event.target.value }));
    at("threshold").addEventListener("input", (event) => setThreshold(Number(event.target.value)));
    at("example").addEventListener("change", (event) => choose({ example: Number(event.target.value) }));
    at("theme").addEventListener("click", nextTheme);
    at("help-open").addEventListener("click", () => at("help").showModal());
    document.addEventListener("keydown", pageKey);
    system.addEventListener("change", () => theme === "auto" && (setTheme("auto"), choose({}, "draw")));
    let width = 0;
    new ResizeObserver(() => {
      const now = at("panels").clientWidth;
      if (Math.abs(now - width) > 1) {
        width = now;
        drawPanels();
      }
    }).observe(at("panels"));
    await choose({}, "draw");
    document.documentElement.dataset.ready = "yes";
  }

  // Where a cell of a map lies, for tests and for scripts that drive the page.
  window.captumNorm = { geometry: (place) => panels[place].shape };
  open();
})();

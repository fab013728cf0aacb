// Draws the figures that plots.py describes, as SVG: no library, nothing fetched. Texts go in as text, never as HTML.
const SVG = "http://www.w3.org/2000/svg", BLUE = "#1f5fa8", GREY = "#9aa3af", DASH = {dash: "6 4", dot: "2 3"};
const tip = document.body.appendChild(document.createElement("div"));
tip.id = "tip";
tip.role = "status";
function make(parent, name, attributes, text) {
  const node = parent.appendChild(document.createElementNS(SVG, name));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const shown = value => Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) : String(+value.toPrecision(4));
function say(text, event) {
  tip.textContent = text;
  tip.style.display = text ? "block" : "none";
  if (!text) return;
  const x = event.clientX, y = event.clientY, box = tip.getBoundingClientRect();
  tip.style.left = Math.max(4, Math.min(x + 14, innerWidth - box.width - 4)) + "px";
  tip.style.top = (y + box.height + 18 > innerHeight ? y - box.height - 10 : y + 14) + "px";
}
function hover(svg, find) {
  const move = event => { const box = svg.getBoundingClientRect(); say(find(event.clientX - box.left, event.clientY - box.top), event); };
  svg.addEventListener("pointermove", move);
  svg.addEventListener("pointerdown", move);
  svg.addEventListener("pointerleave", () => say(""));
}
// The ticks of an axis: round numbers, or powers of ten; within a decade or two their multiples.
function ticks(axis, low, high, most) {
  if (axis.ticks) return axis.ticks.map((at, n) => [at, axis.names[n]]);
  const found = [];
  if (axis.log) {
    const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9), every = Math.max(1, Math.ceil((last - first + 1) / most));
    if (last - first >= 1) {
      for (let e = first; e <= last; e += every) found.push([10 ** e, e >= 0 && e < 5 || e === -1 || e === -2 ? shown(10 ** e) : "1e" + e]);
      return found;
    }
    for (const parts of [[1, 2, 5], [1, 2, 3, 4, 5, 6, 7, 8, 9]]) {
      found.length = 0;
      for (let e = first - 1; e <= last; e++) for (const n of parts) { const at = n * 10 ** e; if (at >= low && at <= high) found.push([at, shown(at)]); }
      if (found.length > 2) return found;
    }
    found.length = 0;
  }
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough)), steps = axis.whole ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10];
  const step = Math.max(steps.find(n => n * power >= rough) * power, axis.whole ? 1 : 0);
  for (let n = Math.ceil(low / step - 1e-9); n * step <= high + 1e-9 * step; n++) found.push([n * step, shown(+(n * step).toPrecision(10))]);
  return found;
}
// The range of an axis: as given, or all values with a little room.
function range(axis, values) {
  if (axis.range) return axis.range;
  const known = values.filter(v => v !== null && (!axis.log || v > 0));
  let low = Math.min(...known), high = Math.max(...known);
  if (!known.length) return axis.log ? [0.1, 1] : [0, 1];
  if (axis.log) { const room = (high / low) ** 0.05 || 1; return low === high ? [low / 2, high * 2] : [low / room, high * room]; }
  const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low - room, Math.min(high + room, axis.most ?? Infinity)];
}
const place = (axis, [low, high], from, to) => axis.log
  ? v => from + (Math.log(v) - Math.log(low)) / (Math.log(high) - Math.log(low)) * (to - from)
  : v => from + (v - low) / (high - low) * (to - from);
function curves(holder, figure) {
  const width = holder.clientWidth, height = holder.clientHeight, series = figure.series, svg = make(holder, "svg", {width, height, viewBox: `0 0 ${width} ${height}`});
  const named = [...figure.bands || [], ...series].filter(s => s.name), legend = named.length > 1;
  const of = (axis, ...keys) => series.filter(s => (s.axis || "y") === axis).flatMap(s => keys.flatMap(k => s[k] || []));
  const across = series.some(s => s.across), diagonal = (figure.rules || []).flatMap(r => r.diagonal || []);
  const rx = range(figure.x, [...series.flatMap(s => s.x), ...(across ? of("y", "low", "high") : []), ...(figure.rules || []).flatMap(r => r.x ?? []), ...diagonal]);
  const ry = range(figure.y, [...of("y", "y"), ...(across ? [] : of("y", "low", "high")), ...(figure.bands || []).flatMap(b => [...b.low, ...b.high]), ...(figure.rules || []).flatMap(r => r.y ?? []), ...diagonal]);
  const ry2 = figure.y2 && range(figure.y2, of("y2", "y"));
  const most = Math.max(2, Math.floor(height / 55)), ty = ticks(figure.y, ...ry, most);
  const left = (figure.y.title ? 24 : 4) + Math.min(width * 0.4, 10 + 6.6 * Math.max(...ty.map(t => String(t[1]).length), 2)), right = figure.y2 ? 62 : 14, bottom = 46;
  let line = 16, at = left;
  if (legend) for (const s of named) {
    const room = 34 + 6.6 * s.name.length;
    if (at > left && at + room > width - 4) { at = left; line += 18; }
    if (s.low && !s.y) make(svg, "rect", {x: at, y: line - 10, width: 18, height: 10, fill: BLUE, "fill-opacity": 0.13});
    else make(svg, "line", {x1: at, x2: at + 18, y1: line - 5, y2: line - 5, stroke: s.colour || BLUE, "stroke-width": 2, "stroke-dasharray": DASH[s.line] || ""});
    make(svg, "text", {x: at + 23, y: line}, s.name);
    at += room;
  }
  const top = legend ? line + 12 : 12;
  const px = place(figure.x, rx, left, width - right), axes = {y: place(figure.y, ry, height - bottom, top)};
  if (figure.y2) axes.y2 = place(figure.y2, ry2, height - bottom, top);
  for (const [v, text] of ticks(figure.x, ...rx, Math.max(2, Math.floor((width - left - right) / 70)))) {
    make(svg, "line", {x1: px(v), x2: px(v), y1: top, y2: height - bottom, class: "grid"});
    make(svg, "text", {x: px(v), y: height - bottom + 16, "text-anchor": "middle"}, text);
  }
  for (const [v, text] of ty) {
    make(svg, "line", {x1: left, x2: width - right, y1: axes.y(v), y2: axes.y(v), class: "grid"});
    make(svg, "text", {x: left - 6, y: axes.y(v) + 4, "text-anchor": "end"}, text);
  }
  if (figure.y2) for (const [v, text] of ticks(figure.y2, ...ry2, most)) make(svg, "text", {x: width - right + 6, y: axes.y2(v) + 4}, text);
  make(svg, "text", {x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle"}, figure.x.title);
  const middle = (top + height - bottom) / 2;
  if (figure.y.title) make(svg, "text", {transform: `translate(14 ${middle}) rotate(-90)`, "text-anchor": "middle"}, figure.y.title);
  if (figure.y2) make(svg, "text", {transform: `translate(${width - 8} ${middle}) rotate(-90)`, "text-anchor": "middle"}, figure.y2.title);
  for (const b of figure.bands || []) {
    const points = [...b.x.map((v, n) => [v, b.high[n]]), ...b.x.map((v, n) => [v, b.low[n]]).reverse()];
    make(svg, "polygon", {points: points.map(([v, w]) => `${px(v)},${axes.y(w)}`).join(" "), fill: BLUE, "fill-opacity": 0.13});
  }
  for (const r of figure.rules || []) {
    const [x1, y1, x2, y2] = r.diagonal ? [px(r.diagonal[0]), axes.y(r.diagonal[0]), px(r.diagonal[1]), axes.y(r.diagonal[1])]
      : r.x !== undefined ? [px(r.x), top, px(r.x), height - bottom] : [left, axes.y(r.y), width - right, axes.y(r.y)];
    make(svg, "line", {x1, y1, x2, y2, stroke: GREY, "stroke-dasharray": DASH.dash});
  }
  const targets = [];
  for (const s of series) {
    const py = axes[s.axis || "y"], colour = s.colour || BLUE, crosses = new Set(s.crosses || []), line = [];
    const floor = height - bottom, thick = Math.max(3, (width - left - right) / (s.x.length * 1.6 + 1));
    s.x.forEach((v, n) => {
      const w = s.y[n];
      if (v === null || w === null || figure.x.log && !(v > 0)) { line.push(null); return; }
      const x = px(v), y = py(w), size = (Array.isArray(s.size) ? s.size[n] : s.size ?? 7) / 2;
      line.push(`${x.toFixed(1)},${y.toFixed(1)}`);
      if (s.low && s.low[n] !== null && s.high[n] !== null) {
        const [x1, x2, y1, y2] = s.across ? [px(s.low[n]), px(s.high[n]), y, y] : [x, x, py(s.low[n]), py(s.high[n])];
        make(svg, "line", {x1, x2, y1, y2, stroke: GREY});
      }
      if (s.bars) make(svg, "rect", {x: x - thick / 2, y, width: thick, height: Math.max(0, floor - y), fill: colour, class: "point"});
      else if (crosses.has(n)) make(svg, "path", {d: `M${x - 4},${y - 4}l8,8m0,-8l-8,8`, stroke: colour, "stroke-width": 2, class: "point"});
      else if (size) make(svg, "circle", {cx: x.toFixed(1), cy: y.toFixed(1), r: size, fill: colour, "fill-opacity": s.opacity || 1, class: "point"});
      if (s.tip) targets.push([x, y, () => s.tip.replace("{x}", shown(v)).replace("{y}", shown(w)).replace("{note}", () => (s.notes || [])[n])]);
    });
    if (s.line !== "none" && !s.bars) {
      let d = "", down = false;
      for (const point of line) { if (point) d += (down ? "L" : "M") + point; down = point !== null; }
      svg.insertBefore(make(svg, "path", {d, fill: "none", stroke: colour, "stroke-width": 1.6, "stroke-dasharray": DASH[s.line] || ""}), svg.querySelector(".point"));
    }
  }
  hover(svg, (x, y) => {
    let best = null, least = 30 ** 2;
    for (const target of targets) {
      const far = (target[0] - x) ** 2 + (target[1] - y) ** 2;
      if (far < least) { least = far; best = target; }
    }
    return best ? best[2]() : "";
  });
}
const shade = share => { const mix = (a, b) => Math.round(a + (b - a) * share ** 0.8); return `rgb(${mix(247, 8)},${mix(250, 64)},${mix(253, 138)})`; };
function matrix(holder, figure) {
  const {matrix, totals, names, full} = figure, k = names.length, width = holder.clientWidth, height = holder.clientHeight;
  const svg = make(holder, "svg", {width, height, viewBox: `0 0 ${width} ${height}`}), longest = Math.max(...names.map(n => n.length));
  const room = Math.min(width * 0.3, 14 + 6.4 * longest), left = room + 20, top = 4, bottom = Math.min(height * 0.3, 14 + 4.8 * longest) + 24;
  // A name that does not fit keeps its beginning; the pointer shows all of it.
  const most = Math.floor((room - 8) / 6.4), cut = name => name.length > most ? name.slice(0, Math.max(most - 1, 1)) + "…" : name;
  const w = (width - left - 6) / k, h = (height - top - bottom) / k;
  make(svg, "rect", {x: left, y: top, width: w * k, height: h * k, fill: shade(0), class: "hm"});
  const every = Math.max(1, Math.ceil(13 / h)), fits = w > 24 && h > 12;
  matrix.forEach((row, i) => row.forEach((count, j) => {
    if (!count) return;
    const share = count / Math.max(totals[i], 1), x = left + j * w, y = top + i * h;
    make(svg, "rect", {x: x + 0.5, y: y + 0.5, width: Math.max(w - 1, 0.5), height: Math.max(h - 1, 0.5), fill: shade(share)});
    if (fits) make(svg, "text", {x: x + w / 2, y: y + h / 2 + 4, "text-anchor": "middle", fill: share > 0.5 ? "#fff" : "#1c2430"}, count);
  }));
  names.forEach((name, i) => {
    if (i % every === 0) make(svg, "text", {x: left - 6, y: top + (i + 0.5) * h + 4, "text-anchor": "end", class: "tick"}, cut(name));
    if (i % Math.max(1, Math.ceil(18 / w)) === 0) make(svg, "text", {transform: `translate(${left + (i + 0.5) * w + 4} ${top + h * k + 10}) rotate(-45)`, "text-anchor": "end", class: "tick"}, cut(name));
  });
  make(svg, "text", {x: left + w * k / 2, y: height - 4, "text-anchor": "middle"}, "predicted");
  make(svg, "text", {transform: `translate(12 ${top + h * k / 2}) rotate(-90)`, "text-anchor": "middle"}, "label");
  hover(svg, (x, y) => {
    const j = Math.floor((x - left) / w), i = Math.floor((y - top) / h);
    if (i < 0 || j < 0 || i >= k || j >= k) return "";
    return `label ${full[i]}\npredicted ${full[j]}\n${matrix[i][j]} row${matrix[i][j] === 1 ? "" : "s"}, ${(100 * matrix[i][j] / Math.max(totals[i], 1)).toFixed(1)}%`;
  });
}
function draw() {
  for (const [id, figure] of Object.entries(figures)) {
    const holder = document.getElementById("plot-" + id);
    holder.replaceChildren();
    (figure.matrix ? matrix : curves)(holder, figure);
  }
}
const figures = JSON.parse(document.getElementById("figures").textContent);
draw();
let drawnAt = innerWidth, waiting;
addEventListener("resize", () => {
  if (innerWidth === drawnAt) return;  // a phone's address bar changes only the height
  clearTimeout(waiting);
  waiting = setTimeout(() => { drawnAt = innerWidth; draw(); }, 120);
});

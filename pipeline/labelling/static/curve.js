// The audited figure over the number of labels, with its interval.

const SVG = "http://www.w3.org/2000/svg";

function add(parent, name, attributes, text = "") {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  parent.append(made);
}

export function drawCurve(svg, history, isShare) {
  svg.replaceChildren();
  const points = history.filter(point => point.value !== null);
  if (!points.length) return;
  const most = Math.max(...points.map(point => point.labels), 1);
  const top = isShare ? 1 : Math.max(...points.map(point => point.high ?? point.value)) || 1;
  const x = point => 34 + point.labels / most * 256, y = value => 94 - value / top * 84;
  const line = (name, list) => list.map(point => `${x(point).toFixed(1)},${y(point[name] ?? point.value).toFixed(1)}`);
  for (const share of [0, .5, 1]) {
    add(svg, "line", { x1: 34, x2: 292, y1: y(share * top), y2: y(share * top), stroke: "#d5dae2" });
    add(svg, "text", { x: 2, y: y(share * top) + 4 }, isShare ? `${share * 100} %` : (share * top).toPrecision(2));
  }
  add(svg, "polygon", { points: [...line("low", points), ...line("high", points).reverse()].join(" "), fill: "#cfe0f3" });
  add(svg, "polyline", { points: line("value", points).join(" "), fill: "none", stroke: "#1f5fa8", "stroke-width": 2 });
  for (const point of points.slice(-40)) add(svg, "circle", { cx: x(point), cy: y(point.value), r: 2, fill: "#1f5fa8" });
  add(svg, "text", { x: 292, y: 107, "text-anchor": "end" }, `${most} labels`);
}

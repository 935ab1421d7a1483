// Elements and charts: small functions that make DOM nodes. Text is always set as text, never as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  return filled(node, attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, name), attributes, children);
}

function filled(node, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// A round number at or above the highest value, so that the scale's lines have readable names.
function ceiling(highest) {
  if (!(highest > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(highest));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((bound) => bound >= highest);
}

export function short(number) {
  if (number >= 1e6) return `${+(number / 1e6).toFixed(1)}M`;
  if (number >= 1e4) return `${+(number / 1e3).toFixed(1)}k`;
  return number >= 100 || Number.isInteger(number) ? Math.round(number).toLocaleString("en") : `${+number.toFixed(1)}`;
}

export function sparkline(values, slots) {
  const width = 240, height = 36, highest = Math.max(...values, 1e-9);
  const points = values.map((value, index) => {
    const x = (width * (slots - values.length + index)) / (slots - 1);
    return `${x.toFixed(1)},${(height - 2 - (value / highest) * (height - 8)).toFixed(1)}`;
  });
  const node = svg("svg", { viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
  if (points.length > 1) {
    const first = points[0].split(",")[0];
    node.append(svg("path", { class: "area", d: `M${first},${height} L${points.join(" L")} L${width},${height} Z` }));
    node.append(svg("path", { class: "edge", d: `M${points.join(" L")}`, "vector-effect": "non-scaling-stroke" }));
  }
  return node;
}

// A line through the points, left out where there is nothing: it would lie over the line of another series.
function trace(points, values) {
  const there = (index) => values[index] > 0;
  const drawn = (index) => there(index - 1) || there(index) || there(index + 1);
  return points.map((point, index) => (drawn(index) ? `${index && drawn(index - 1) ? "L" : "M"}${point}` : "")).join(" ");
}

// Stacked areas over time; series: [{mark, values}], all of one length. at(index) hears where the pointer is.
export function stacked(node, series, slots, secondsEach, at) {
  const width = node.clientWidth || 800, height = node.clientHeight || 224;
  const left = 40, right = 8, top = 8, bottom = 22;
  const length = series[0].values.length;
  const sums = Array.from({ length }, (_, index) => series.reduce((sum, one) => sum + one.values[index], 0));
  const highest = ceiling(Math.max(...sums, 0));
  const x = (index) => left + ((width - left - right) * (slots - length + index)) / (slots - 1);
  const y = (value) => height - bottom - (value / highest) * (height - top - bottom);
  node.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const parts = [];
  for (const share of [0, 0.5, 1]) {
    const level = y(highest * share);
    parts.push(svg("line", { class: "grid", x1: left, x2: width - right, y1: level, y2: level }));
    parts.push(svg("text", { x: left - 8, y: level + 4, "text-anchor": "end" }, short(highest * share)));
  }
  for (const back of [0, 0.25, 0.5, 0.75, 1]) {
    const seconds = Math.round(back * (slots - 1) * secondsEach);
    const anchor = back === 0 ? "end" : back === 1 ? "start" : "middle";
    const label = seconds === 0 ? "now" : seconds % 60 ? `−${seconds} s` : `−${seconds / 60} min`;
    parts.push(svg("text", { x: width - right - back * (width - left - right), y: height - 5, "text-anchor": anchor }, label));
  }
  let below = Array(length).fill(0);
  for (const one of series) {
    const upper = one.values.map((value, index) => below[index] + value);
    if (length > 1 && one.values.some((value) => value > 0)) {
      const edge = upper.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`);
      const base = below.map((value, index) => `${x(index).toFixed(1)},${y(value).toFixed(1)}`).reverse();
      const group = svg("g", { class: one.mark });
      group.append(svg("path", { class: "area", d: `M${edge.join(" L")} L${base.join(" L")} Z` }));
      group.append(svg("path", { class: "edge", d: trace(edge, one.values) }));
      parts.push(group);
    }
    below = upper;
  }
  const cross = svg("line", { class: "cross", y1: top, y2: height - bottom, x1: -9, x2: -9 });
  node.replaceChildren(...parts, cross);
  node.onpointermove = (event) => {
    const where = ((event.offsetX - left) / (width - left - right)) * (slots - 1) - (slots - length);
    const index = Math.max(0, Math.min(length - 1, Math.round(where)));
    cross.setAttribute("x1", x(index));
    cross.setAttribute("x2", x(index));
    at(index);
  };
  node.onpointerleave = () => {
    cross.setAttribute("x1", -9);
    cross.setAttribute("x2", -9);
    at(null);
  };
}

export function days(list) {
  const width = 900, height = 176, left = 44, bottom = 22, top = 8;
  const highest = ceiling(Math.max(...list.map((day) => +day.cents)));
  const each = (width - left) / list.length;
  const total = list.reduce((sum, day) => sum + day.calls, 0);
  const node = svg("svg", {
    class: "days", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `Cents by day of the last ${list.length} days: ${total} calls in all, at most ${highest} cents a day.`,
  });
  for (const share of [0, 0.5, 1]) {
    const level = height - bottom - share * (height - bottom - top);
    node.append(svg("line", { class: "grid", x1: left, x2: width, y1: level, y2: level }));
    node.append(svg("text", { x: left - 8, y: level + 4, "text-anchor": "end" }, short(highest * share)));
  }
  list.forEach((day, index) => {
    const tall = (+day.cents / highest) * (height - bottom - top);
    const bar = svg("rect", {
      class: "bar", x: left + index * each + each * 0.18, y: height - bottom - tall, width: each * 0.64,
      height: Math.max(tall, day.calls ? 1.5 : 0), rx: Math.min(3, each * 0.3),
    });
    bar.append(svg("title", {}, `${day.day}: ${day.cents} cents, ${day.calls} calls`));
    node.append(bar);
    if (index % 5 === 4 || index === 0) {
      node.append(svg("text", { x: left + (index + 0.5) * each, y: height - 5, "text-anchor": index === list.length - 1 ? "end" : "middle" }, day.day.slice(5)));
    }
  });
  return node;
}

export function bar(share, label) {
  const kind = share >= 1 ? "over" : share >= 0.8 ? "near" : "fill";
  const node = svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", role: "img", "aria-label": label });
  node.append(svg("rect", { class: "track", width: 100, height: 4 }));
  node.append(svg("rect", { class: kind, width: Math.max(0, Math.min(1, share)) * 100, height: 4 }));
  return node;
}

// Making and updating elements. Text always goes in as text, never as HTML: events come from outside.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

// Brings the children of `parent` in line with `items`, in order. A child stays the same element as long as its
// item's key stays, so that a selection, a focus or an animation survives the update.
export function keyed(parent, items, keyOf, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, at) => {
    const key = String(keyOf(item));
    const child = known.get(key) ?? create(item);
    child.dataset.key = key;
    known.delete(key);
    if (parent.children[at] !== child) parent.insertBefore(child, parent.children[at] ?? null);
    update(child, item);
  });
  for (const gone of known.values()) gone.remove();
}

// The last `length` values of each named series.
export class History {
  constructor(length) {
    this.length = length;
    this.series = new Map();
  }

  add(name, value) {
    const values = this.series.get(name) ?? [];
    values.push(value);
    if (values.length > this.length) values.shift();
    this.series.set(name, values);
    return values;
  }
}

export function sparkline() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "spark");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  for (const part of ["area", "line"]) {
    const path = document.createElementNS(SVG, "path");
    path.setAttribute("class", part);
    svg.append(path);
  }
  return svg;
}

// Newest value at the right edge; the scale begins at zero. Missing values are left out.
export function drawSparkline(svg, values, length) {
  const top = Math.max(1e-9, ...values.filter((value) => value !== null));
  const offset = length - values.length;
  const points = values
    .map((value, at) => (value === null ? null : [offset + at, 30 - (28 * value) / top]))
    .filter((point) => point !== null);
  svg.setAttribute("viewBox", `0 0 ${length - 1} 31`);
  const [area, line] = svg.children;
  const trail = points.map(([x, y]) => `${x} ${y.toFixed(2)}`).join(" L");
  line.setAttribute("d", points.length > 1 ? `M${trail}` : "");
  area.setAttribute("d", points.length > 1 ? `M${points[0][0]} 31 L${trail} L${points.at(-1)[0]} 31 Z` : "");
}

// The tree as SVG: one row per level from a node downwards, coloured by usage or by a search's hits.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = { left: 54, width: 706, row: 32, gap: 16 };
// Usage as a multiple of a balanced tree's share, from an eighth to eight times.
const BLUES = ["#eaf1f7", "#d3e3ef", "#aecbe1", "#7badd0", "#4a8aba", "#236a9f", "#0c4370"];
const ORANGES = ["#fde9d3", "#fbd0a2", "#f6ae69", "#ea8836", "#cf6414", "#9c450a"];
const HIT_STEPS = [0.01, 0.03, 0.1, 0.3, 0.6]; // shares of the hits between two colours
const RATIOS = ["⅛ ×", "¼ ×", "½ ×", "1 ×", "2 ×", "4 ×", "8 ×"];

function element(name, attributes = {}, text = null) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

const usageStep = (ratio) => Math.min(6, Math.max(0, Math.round(Math.log2(ratio)) + 3));
const hitStep = (share) => HIT_STEPS.filter((step) => share >= step).length;

// What a cell of a width shows: colour, whether its label is white, and the label, "" where none fits.
function look(node, data, hits, width) {
  const fits = (label) => width > 7.4 * label.length;
  const label = (...labels) => labels.find(fits) ?? "";
  const share = data.counts[node] / N;
  if (hits) {
    if (!hits.counts[node]) return { fill: data.counts[node] ? "#eef1f4" : null, label: "" };
    const step = hitStep(hits.counts[node] / hits.tokens.length);
    return { fill: ORANGES[step], pale: step > 3, label: label(number(hits.counts[node])) };
  }
  if (!share) return { fill: null, label: "" };
  const step = usageStep(share * 2 ** levelOf(node));
  const rounded = share < 0.01 ? "" : `${Math.round(100 * share)}\u00a0%`;
  return { fill: BLUES[step], pale: step > 3, label: label(percent(share), rounded) };
}

function place(node, top) {
  const level = levelOf(node) - levelOf(top);
  const index = node - firstNode(level + levelOf(top)) - (top - firstNode(levelOf(top))) * 2 ** level;
  const width = DRAWN.width / 2 ** level;
  const space = Math.min(5, width * 0.14);
  const x = DRAWN.left + index * width;
  return { x: x + space / 2, y: level * (DRAWN.row + DRAWN.gap) + 2, width: width - space, middle: x + width / 2 };
}

function drawTree(svg, data, { top, last, chosen, hits }) {
  const rows = last - levelOf(top) + 1;
  svg.setAttribute("viewBox", `0 0 ${DRAWN.left + DRAWN.width} ${rows * (DRAWN.row + DRAWN.gap) - DRAWN.gap + 4}`);
  const above = new Set();
  for (let node = chosen; node > 0; node = parentOf(node)) above.add(parentOf(node));
  const links = element("g"), cells = element("g"), labels = element("g");
  for (let level = levelOf(top); level <= last; level++) {
    const y = (level - levelOf(top)) * (DRAWN.row + DRAWN.gap) + DRAWN.row / 2 + 6;
    labels.append(element("text", { x: 0, y, class: "level" }, `level ${level}`));
    const count = 2 ** (level - levelOf(top));
    const from = firstNode(level) + (top - firstNode(levelOf(top))) * count;
    for (let node = from; node < from + count; node++)
      drawNode(node, data, hits, { top, chosen, above, links, cells, labels });
  }
  svg.replaceChildren(links, cells, labels);
}

function drawNode(node, data, hits, { top, chosen, above, links, cells, labels }) {
  const { x, y, width, middle } = place(node, top);
  const { fill, pale, label } = look(node, data, hits, width);
  const states = ["node"];
  if (!fill) states.push(width < 6 ? "empty thin" : "empty"); // outlines of thin cells would fill them
  if (above.has(node)) states.push("above");
  if (node === chosen) states.push("chosen");
  const cell = element("rect", { x, y, width, height: DRAWN.row, class: states.join(" "), "data-node": node });
  if (width > 9) cell.setAttribute("rx", 4);
  if (fill) cell.setAttribute("fill", fill);
  cells.append(cell);
  if (node !== top && width > 3) {
    const from = place(parentOf(node), top), bottom = from.y + DRAWN.row;
    const taken = node === chosen || above.has(node) ? " taken" : "";
    const path = `M${from.middle} ${bottom}V${bottom + DRAWN.gap / 2}H${middle}V${y}`;
    links.append(element("path", { d: path, class: `link${taken}` }));
  }
  if (label)
    labels.append(
      element("text", { x: middle, y: y + DRAWN.row / 2 + 4, "text-anchor": "middle", class: pale ? "pale" : "" }, label)
    );
}

function drawLegend(legend, hits) {
  const entry = (colour, text) => {
    const made = html("span", {}, html("i", { className: colour ? "swatch" : "swatch empty" }), text);
    if (colour) made.firstChild.style.background = colour;
    return made;
  };
  if (hits) {
    const names = ["< 1 %", ...HIT_STEPS.map((step) => `≥ ${Math.round(step * 100)} %`)];
    legend.replaceChildren(
      html("span", {}, "Share of the search's tokens:"), entry("#eef1f4", "none"),
      ...names.map((name, i) => entry(ORANGES[i], name))
    );
    return;
  }
  legend.replaceChildren(
    html("span", {}, "Tokens, as a multiple of a balanced tree's share:"), entry(null, "none"),
    ...RATIOS.map((name, i) => entry(BLUES[i], i === 0 ? `${name} or less` : i === 6 ? `${name} or more` : name))
  );
}

// Five quantiles of the decision margin as a box with whiskers, on the tree's axis.
function drawMargins(values, scale) {
  const width = 320, end = Math.max(scale, values[4]) || 1, at = (value) => 4 + (value / end) * (width - 8);
  const svg = element("svg", { viewBox: `0 0 ${width} 40`, class: "margins", role: "img" });
  svg.style.maxWidth = `${width}px`;
  const line = (x1, y1, x2, y2, stroke, thick = 1) =>
    svg.append(element("line", { x1, y1, x2, y2, stroke, "stroke-width": thick }));
  line(4, 24, width - 4, 24, "#dde3ea");
  line(at(values[0]), 12, at(values[4]), 12, "#4b5a69");
  const box = { x: at(values[1]), y: 4, width: Math.max(1, at(values[3]) - at(values[1])), height: 16, rx: 2 };
  svg.append(element("rect", { ...box, fill: "#aecbe1", stroke: "#4b5a69" }));
  line(at(values[2]), 4, at(values[2]), 20, "#0c4370", 2.5);
  svg.append(element("text", { x: 4, y: 38, class: "level" }, "0"));
  svg.append(element("text", { x: width - 4, y: 38, class: "level", "text-anchor": "end" }, figure(end)));
  return svg;
}

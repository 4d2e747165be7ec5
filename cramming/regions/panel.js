// The panel beside the tree: a node's numbers, its typical tokens in context, a search's hits there.

const CONTEXT = 48; // characters on each side
const number = (value) => value.toLocaleString("en-US");
const figure = (value) => (Number.isFinite(value) ? value.toPrecision(3) : "–");
const percent = (share) =>
  share && share < 0.001 ? "<\u00a00.1\u00a0%" : `${(100 * share).toFixed(share < 1 ? 1 : 0)}\u00a0%`;

function html(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Leaves are numbered as in fff.regions, from 0 on the left; nodes in heap order.
const leafNumber = (node, depth) => node - firstNode(depth);
const nodeName = (node, depth) =>
  levelOf(node) === depth ? `Leaf ${number(leafNumber(node, depth))}` : `Node ${number(node)}`;

// The decisions from the root, e.g. "left, right"; long ones in letters.
function decisions(node) {
  const taken = [];
  for (; node > 0; node = parentOf(node)) taken.unshift(node % 2 ? "left" : "right");
  return taken.length > 4 ? taken.map((word) => word[0].toUpperCase()).join(" ") : taken.join(", ");
}

function context(token) {
  const start = TOKENS.starts[token], end = TOKENS.ends[token];
  const before = DATA.text.slice(Math.max(0, start - CONTEXT), start).replace(/^\S*\s/, "");
  const after = DATA.text.slice(end, end + CONTEXT).replace(/\s\S*$/, "");
  return html("span", { className: "context" }, before, html("mark", {}, DATA.text.slice(start, end)), after);
}

// A few of many, spread evenly.
function spread(values, most) {
  if (values.length <= most) return values;
  return Array.from({ length: most }, (_, i) => values[Math.floor((i * values.length) / most)]);
}

function row(cells, numbers = []) {
  return html("tr", {}, ...cells.map((cell, i) => html("td", { className: numbers.includes(i) ? "number" : "" }, cell)));
}

function heading(titles, numbers = []) {
  const cells = titles.map((title, i) => html("th", { className: numbers.includes(i) ? "number" : "" }, title));
  return html("tr", {}, ...cells);
}

function facts(pairs) {
  const list = html("dl");
  for (const [name, ...values] of pairs) list.append(html("dt", {}, name), html("dd", {}, ...values));
  return list;
}

function nodeFacts(data, node) {
  const level = levelOf(node), count = data.counts[node], share = count / N;
  const ratio = level ? `, ${figure(share * 2 ** level)} × a balanced tree's ${percent(2 ** -level)}` : "";
  const pairs = [["Share", html("span", { id: "share" }, `${percent(share)} of the tokens (${number(count)})${ratio}`)]];
  if (level) pairs.push(["Decisions", decisions(node)]);
  if (level === data.depth) pairs.push(["Node", `${number(node)} in heap order`]);
  if (level < data.depth) {
    const right = count ? data.counts[2 * node + 2] / count : 0;
    const [from, to] = leavesBelow(node, data.depth), first = firstNode(data.depth);
    const used = data.counts.slice(first + from, first + to).filter(Boolean).length;
    const bar = html("div", { className: "bar" }, html("i"), html("i"));
    if (count) bar.children[0].style.width = `${100 * (1 - right)}%`;
    if (count) bar.children[1].style.width = `${100 * right}%`;
    if (count) pairs.push(["Goes on", `${percent(1 - right)} left, ${percent(right)} right`, bar]);
    pairs.push(["Leaves below", `${number(used)} of ${number(to - from)} are used`]);
  }
  return facts(pairs);
}

function marginPart(data, node) {
  const part = html("div", { id: "margins" }, html("h3", {}, "Decision margin"));
  if (levelOf(node) === data.depth) {
    part.append(html("p", { className: "note" }, "A leaf takes no decision, so it has no margin."));
    return part;
  }
  const values = data.margins.slice(node * 5, node * 5 + 5);
  if (Number.isNaN(values[0])) {
    const why = data.counts[node] ? "No tree of decisions chose this layer's units." : "No token comes here.";
    return part.append(html("p", { className: "note" }, why)), part;
  }
  const table = html("table", { className: "quantiles" }, heading(["5 %", "25 %", "median", "75 %", "95 %"]));
  table.append(row(Array.from(values, figure)));
  part.append(drawMargins(values, data.scale), table);
  part.append(html("p", { className: "note" },
    "Quantiles of |score| (no unit) over the node's tokens. Near 0, a small change sends a token the other way."));
  return part;
}

function typicalPart(data, node, inside) {
  const part = html("div", { id: "typical" }, html("h3", {}, "Typical tokens"));
  if (!inside.length) return part.append(html("p", { className: "note" }, "No token comes here.")), part;
  const counts = countIds(inside), table = html("table");
  table.append(heading(["token", "z", "here / all", "in context"], [1, 2]));
  for (const { id, z } of typical(counts, inside.length, 15)) {
    const places = inside.filter((token) => TOKENS.ids[token] === id);
    const cell = html("td", {}, context(places[places.length >> 1]));
    const share = `${number(counts[id])} / ${number(EVERYWHERE[id])}`;
    const made = row([html("code", {}, DATA.vocabulary[id]), z.toFixed(1), share], [1, 2]);
    made.append(cell);
    if (places.length > 1) {
      made.className = "opens";
      made.title = "Click for more contexts";
      made.onclick = () => {
        const shown = cell.children.length > 1 ? [context(places[places.length >> 1])] : spread(places, 6).map(context);
        cell.replaceChildren(...shown.map((each) => html("div", {}, each)));
      };
    }
    table.append(made);
  }
  part.append(table, html("p", { className: "note" },
    "By the z-score of the log-odds ratio of this region against the rest of the text, with the text's own " +
    `frequencies as prior (${PRIOR} tokens; Monroe et al. 2008). ## begins a piece inside of a word. Click a row for more contexts.`));
  return part;
}

function leavesPart(data, choose) {
  const first = firstNode(data.depth), part = html("div", { id: "fullest" }, html("h3", {}, "Fullest leaves"));
  const order = Array.from({ length: data.counts.length - first }, (_, i) => first + i);
  const table = html("table", {}, heading(["leaf", "share", "typical tokens"], [1]));
  for (const leaf of order.sort((a, b) => data.counts[b] - data.counts[a]).slice(0, 10)) {
    if (!data.counts[leaf]) break;
    const best = typical(countIds(tokensAt(data, leaf)), data.counts[leaf], 6);
    const words = best.flatMap(({ id }) => [html("code", {}, DATA.vocabulary[id]), " "]);
    const made = row([number(leafNumber(leaf, data.depth)), percent(data.counts[leaf] / N), html("span", {}, ...words)], [1]);
    made.className = "opens";
    made.onclick = () => choose(leaf);
    table.append(made);
  }
  part.append(table);
  return part;
}

function treePart(data) {
  const { bits, dead, fullest, leaves } = usage(data);
  return facts([
    ["Usage entropy", html("span", { id: "entropy" }, `${bits.toFixed(2)} bits of at most ${data.depth}`)],
    ["Dead leaves", `${number(dead)} of ${number(leaves)}, which no token of this text reaches`],
    ["Fullest leaf", `${percent(data.counts[fullest] / N)} of the tokens, balanced would be ${percent(1 / leaves)}`],
  ]);
}

function hitsPart(data, node, hits) {
  const here = tokensAt(data, node, hits.tokens), part = html("div", { id: "hits" });
  part.append(html("h3", {}, `“${hits.word}” here`));
  part.append(html("p", {}, `${number(here.length)} of its ${number(hits.tokens.length)} tokens`));
  part.append(...spread(here, 8).map((token) => html("div", {}, context(token))));
  return part;
}

function editPart(layer, leaf, tree) {
  const call = `ablate_leaf(encoder.get_submodule("${layer}"), ${leaf}, tree=${tree})`;
  return html("div", { id: "edit" }, html("h3", {}, "Edit this region alone"), html("code", {}, call),
    html("p", { className: "note" },
      "From fff.regions: silences the leaf; no other token's output of the layer changes by a bit."));
}

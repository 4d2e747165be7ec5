// The page's state and its controls. What is shown follows from the state alone.

const byId = (id) => document.getElementById(id);
// last: lowest drawn level; wholeLast: the same as it was when the whole tree was drawn.
const state = { layer: 0, tree: 0, last: 0, wholeLast: 0, top: 0, node: 0, found: null };

function show() {
  const data = treeData(state.layer, state.tree), { found, node } = state;
  const hits = found?.tokens.length
    ? { ...found, counts: countNodes(data.leaves, data.depth, found.tokens) }
    : null;
  const { name, editable } = DATA.layers[state.layer];
  byId("drawn").textContent = `${name}, tree ${state.tree}: ${hits ? `tokens of “${hits.word}”` : "usage"}`;
  drawTree(byId("drawing"), data, { top: state.top, last: state.last, chosen: node, hits });
  drawLegend(byId("legend"), hits);
  showFound(data, hits);
  const parts = [html("h2", { id: "title" }, title(node, data.depth)), steps(data), nodeFacts(data, node)];
  if (node === 0) parts.push(treePart(data));
  if (hits) parts.push(hitsPart(data, node, hits));
  if (data.depth) parts.push(marginPart(data, node));
  if (node === 0) parts.push(leavesPart(data, choose));
  else parts.push(typicalPart(data, node, tokensAt(data, node)));
  if (editable && levelOf(node) === data.depth) parts.push(editPart(name, leafNumber(node, data.depth), state.tree));
  byId("panel").replaceChildren(...parts);
}

function title(node, depth) {
  return node === 0 ? "Root: the whole tree" : `${nodeName(node, depth)}, level ${levelOf(node)} of ${depth}`;
}

function steps(data) {
  const { node, top } = state, leaf = levelOf(node) === data.depth;
  const button = (id, text, enabled, action) =>
    html("button", { id, type: "button", textContent: text, disabled: !enabled, onclick: action });
  return html("div", { className: "steps" },
    button("up", "↑ parent", node > 0, () => choose(parentOf(node))),
    button("left", "↙ left child", !leaf, () => choose(2 * node + 1)),
    button("right", "↘ right child", !leaf, () => choose(2 * node + 2)),
    button("focus", "Draw from here", node !== top && !leaf, () => drawFrom(node)),
    button("whole", "Draw the whole tree", top > 0, () => drawFrom(0)));
}

const isBelow = (node, top) => {
  while (node > top) node = parentOf(node);
  return node === top;
};

function choose(node) {
  state.node = node;
  if (isBelow(node, state.top)) show();
  else drawFrom(0);
}

function drawFrom(node) {
  const { depth } = DATA.layers[state.layer];
  if (!state.top) state.wholeLast = state.last;
  state.top = node;
  state.last = node ? Math.min(depth, levelOf(node) + 5) : state.wholeLast;
  fillLevels(depth);
  show();
}

function showFound(data, hits) {
  const line = byId("found"), { found } = state;
  line.hidden = byId("clear").hidden = !found;
  if (!found) return;
  if (!hits) return void (line.textContent = `“${found.word}” does not occur in this text as a whole word.`);
  const first = firstNode(data.depth), leaves = [];
  for (let node = first; node < hits.counts.length; node++) if (hits.counts[node]) leaves.push(node);
  leaves.sort((a, b) => hits.counts[b] - hits.counts[a]);
  const pieces = hits.tokens.length === hits.occurrences ? "" : ` (${number(hits.tokens.length)} tokens)`;
  const times = `${number(hits.occurrences)} ${hits.occurrences === 1 ? "occurrence" : "occurrences"}${pieces}`;
  const reached = `${number(leaves.length)} of ${number(hits.counts.length - first)} leaves`;
  line.replaceChildren(`“${hits.word}”: ${times} in ${reached}. Most in: `);
  for (const leaf of leaves.slice(0, 5))
    line.append(html("button", { type: "button", className: "link-like", onclick: () => choose(leaf) },
      `leaf ${number(leafNumber(leaf, data.depth))} (${percent(hits.counts[leaf] / hits.tokens.length)})`), " ");
}

function fillLevels(depth) {
  const from = levelOf(state.top), options = [];
  for (let level = from + (from < depth ? 1 : 0); level <= depth; level++) options.push(new Option(level, level));
  byId("level").replaceChildren(...options);
  byId("level").value = state.last;
}

function pick(layer, tree) {
  const { depth, trees: all } = DATA.layers[layer];
  const last = Math.min(depth, (state.top ? state.wholeLast : state.last) || 5);
  Object.assign(state, { layer, last, tree: Math.min(tree, all.length - 1), node: 0, top: 0 });
  const which = all.length > 1 ? `(of ${all.length})` : "(the only one)";
  byId("tree").replaceChildren(...all.map((_, i) => new Option(`${i} ${which}`, i)));
  byId("tree").value = state.tree;
  fillLevels(depth);
  show();
}

function start() {
  const part = DATA.whole ? "" : "the beginning of ", { length } = DATA.text;
  byId("about").textContent = `${DATA.run} reads ${part}${DATA.text_name}: ${number(N)} tokens, ` +
    `${number(length)} characters, ${number(DATA.seq_len)} tokens at a time, none masked.`;
  byId("layer").replaceChildren(...DATA.layers.map(({ name, depth, trees: all }, i) =>
    new Option(`${name} (${all.length}x${depth})`, i)));
  byId("layer").onchange = ({ target }) => pick(Number(target.value), state.tree);
  byId("tree").onchange = ({ target }) => pick(state.layer, Number(target.value));
  byId("level").onchange = ({ target }) => { state.last = Number(target.value); show(); };
  byId("controls").onsubmit = (event) => {
    event.preventDefault();
    const word = byId("word").value.trim();
    state.found = word ? search(word) : null;
    show();
  };
  byId("clear").onclick = () => { state.found = null; byId("word").value = ""; show(); };
  const drawing = byId("drawing");
  drawing.onclick = ({ target }) => { if (target.dataset.node) choose(Number(target.dataset.node)); };
  drawing.onmouseover = ({ target }) => {
    if (!target.dataset.node || target.firstChild) return;
    const node = Number(target.dataset.node), data = treeData(state.layer, state.tree);
    const text = `${nodeName(node, data.depth)}: ${percent(data.counts[node] / N)}, ${number(data.counts[node])} tokens`;
    target.append(element("title", {}, text));
  };
  pick(0, 0);
  document.body.dataset.ready = Math.round(performance.now()); // milliseconds since the navigation began
}

start();

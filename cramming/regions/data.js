// The data of the page and what is counted from them. No drawing here.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TYPES = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array };
const PRIOR = 200; // tokens that the prior of the log-odds counts as

function unpack({ type, base64 }) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return new TYPES[type](bytes.buffer);
}

const TOKENS = { ids: unpack(DATA.ids), starts: unpack(DATA.starts), ends: unpack(DATA.ends) };
const N = TOKENS.ids.length;
const EVERYWHERE = countIds(null);

// Nodes are in heap order: root 0, children 2i + 1 (left) and 2i + 2 (right).
const levelOf = (node) => 31 - Math.clz32(node + 1);
const firstNode = (level) => 2 ** level - 1;
const parentOf = (node) => (node - 1) >> 1;

// Leaf numbers [from, to) below a node.
function leavesBelow(node, depth) {
  const level = levelOf(node), width = 2 ** (depth - level);
  const from = (node - firstNode(level)) * width;
  return [from, from + width];
}

const trees = new Map(); // unpacked when first looked at

function treeData(layer, tree) {
  const key = `${layer}/${tree}`;
  if (!trees.has(key)) {
    const packed = DATA.layers[layer].trees[tree], depth = DATA.layers[layer].depth;
    const leaves = unpack(packed.leaves);
    const margins = unpack(packed.margins);
    const data = { depth, leaves, margins, counts: countNodes(leaves, depth, null), scale: 0 };
    // One axis for the margins of all nodes of a tree; nodes with few tokens do not stretch it.
    for (let node = 0; node < firstNode(depth); node++)
      if (data.counts[node] >= Math.min(20, N)) data.scale = Math.max(data.scale, margins[node * 5 + 4] || 0);
    trees.set(key, data);
  }
  return trees.get(key);
}

// Tokens per node, for all tokens or for some.
function countNodes(leaves, depth, some) {
  const counts = new Uint32Array(2 ** (depth + 1) - 1), first = firstNode(depth);
  if (some) for (const token of some) counts[first + leaves[token]]++;
  else for (let token = 0; token < N; token++) counts[first + leaves[token]]++;
  for (let node = counts.length - 1; node > 0; node--) counts[parentOf(node)] += counts[node];
  return counts;
}

function tokensAt(data, node, some = null) {
  const [from, to] = leavesBelow(node, data.depth), found = [];
  const inside = (token) => data.leaves[token] >= from && data.leaves[token] < to;
  if (some) return some.filter(inside);
  for (let token = 0; token < N; token++) if (inside(token)) found.push(token);
  return found;
}

function countIds(some) {
  const counts = new Uint32Array(DATA.vocabulary.length);
  if (some) for (const token of some) counts[TOKENS.ids[token]]++;
  else for (let token = 0; token < N; token++) counts[TOKENS.ids[token]]++;
  return counts;
}

// Ids by the z-score of the log-odds ratio, inside against outside, with the text's frequencies as Dirichlet prior
// (Monroe, Colaresi & Quinn 2008, "Fightin' Words", equations 16, 20, 22).
function typical(inside, size, most) {
  const outside = N - size, found = [];
  for (let id = 0; id < inside.length; id++) {
    if (!inside[id]) continue;
    const prior = (PRIOR * EVERYWHERE[id]) / N;
    const here = inside[id] + prior, there = EVERYWHERE[id] - inside[id] + prior;
    const odds = Math.log(here / (size + PRIOR - here)) - Math.log(there / (outside + PRIOR - there));
    found.push({ id, z: odds / Math.sqrt(1 / here + 1 / there) });
  }
  return found.filter(({ z }) => z > 0).sort((a, b) => b.z - a.z).slice(0, most);
}

function usage(data) {
  const first = firstNode(data.depth);
  let bits = 0, dead = 0, fullest = first;
  for (let node = first; node < data.counts.length; node++) {
    const share = data.counts[node] / N;
    if (share) bits -= share * Math.log2(share);
    else dead++;
    if (data.counts[node] > data.counts[fullest]) fullest = node;
  }
  return { bits: Math.abs(bits), dead, fullest, leaves: data.counts.length - first };
}

// Whole words, any case: how often, and the tokens that they are made of, in order.
function search(word) {
  const letter = "[\\p{L}\\p{N}_]", escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  const before = new RegExp(`^${letter}`, "u").test(word) ? `(?<!${letter})` : "";
  const after = new RegExp(`${letter}$`, "u").test(word) ? `(?!${letter})` : "";
  const pattern = new RegExp(before + escaped + after, "giu");
  const tokens = [];
  let occurrences = 0, token = 0;
  for (const match of DATA.text.matchAll(pattern)) {
    const end = match.index + match[0].length;
    while (token < N && TOKENS.ends[token] <= match.index) token++;
    if (token < N && TOKENS.starts[token] < end) occurrences++;
    while (token < N && TOKENS.starts[token] < end) tokens.push(token++);
  }
  return { word, occurrences, tokens };
}

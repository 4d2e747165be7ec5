"""The Triton kernels of provider `triton`; imports Triton. Who launches them, and why they are these: triton_host.py.

A *band* is LEVELS consecutive levels from LEVEL on. Below each node of level LEVEL (a *group*: its number on that
level) hangs a subtree of 2^LEVELS - 1 nodes, whose rows are one operand of a small dense product; the tokens of the
group are the other. `order` (T, N) lists the tokens of each tree by group, `starts` (T, groups + 1) where each group
begins in it. With one group (GROUPS == 1) both are unused: tokens come as they are.

A token's path is known by its leaf alone. With nodes labelled by heap index + 1, the one at level l is the leaf's label
shifted right by DEPTH - l. In every product the coefficients off the path are exact zeros.

Offsets are int64, because N * H and T * M * H may exceed 2^31. Shapes as in fff.topology.
"""

# The signatures are grouped by what the arguments are, which the formatter would undo.
# fmt: off
import triton
import triton.language as tl


@triton.jit
def _piece(starts, tree, number, tokens, groups, GROUPS: tl.constexpr, SIZE: tl.constexpr, EMPTY: tl.constexpr):
    """Piece `number` of a tree's order: its group, its first and end position, and whether there is such a piece.

    Pieces are of SIZE tokens and within a group. Group g's are numbered from starts[g] // SIZE + g on, which leaves
    room for all of them and makes the search one comparison with every group, nothing to be added up. Numbers between
    are no pieces, as is the rest of the grid. EMPTY: a group without tokens is one piece.
    """
    if GROUPS == 1:
        group = 0
        first = number * SIZE
        end = tokens + 0
        real = first < end
    else:
        group = -1
        for start in tl.static_range(0, GROUPS, 512):
            other = start + tl.arange(0, 512 if GROUPS > 512 else GROUPS)
            group += tl.sum((tl.load(starts + tree * (groups + 1) + other) // SIZE + other <= number).to(tl.int32), 0)
        at = starts + tree * (groups + 1) + group
        begin = tl.load(at)
        end = tl.load(at + 1)
        own = number - begin // SIZE - group
        first = begin + own * SIZE
        real = first < end
        if EMPTY:
            real = real | (own == 0)
    return group, first, tl.minimum(first + SIZE, end), real


@triton.jit
def _partials(starts, tree, group, tokens, groups, GROUPS: tl.constexpr, CHUNK: tl.constexpr):
    """A group's begin, how many pieces of CHUNK tokens it has, and where their partial sums lie.

    From 2 * (begin // CHUNK) on: a group of q >= 1 whole chunks has at most q + 1 <= 2 q pieces.
    """
    if GROUPS == 1:
        begin = 0
        end = tokens + 0
    else:
        at = starts + tree * (groups + 1) + group
        begin = tl.load(at)
        end = tl.load(at + 1)
    return begin, (end - begin + CHUNK - 1) // CHUNK, 2 * (begin // CHUNK)


@triton.jit
def _token(order, tree, position, inside, tokens, GROUPS: tl.constexpr):
    """The tokens (int64) at these positions of a tree's order."""
    if GROUPS == 1:
        token = position.to(tl.int64)
    else:
        token = tl.load(order + tree * tokens + position, mask=inside, other=0)
    return token


@triton.jit
def _subtree(column, group, LEVEL: tl.constexpr, LEVELS: tl.constexpr):
    """Nodes of a group's subtree, columns in its own heap order: labels in the tree, levels, and whether they exist."""
    below = column * 0
    for level in tl.static_range(1, LEVELS):
        below += (column + 1 >= (1 << level)).to(tl.int32)
    return (((1 << LEVEL) + group - 1) << below) + column + 1, LEVEL + below, column < (1 << LEVELS) - 1


@triton.jit
def _above(column, group, LEVEL: tl.constexpr):
    """The same of the nodes above a group, which all of its tokens share: column = level."""
    real = column < LEVEL
    level = tl.where(real, column, 0)
    return ((1 << LEVEL) + group) >> (LEVEL - level), level, real


@triton.jit
def _on_path(leaf, token, inside, label, level, real, tree, trees, DEPTH: tl.constexpr):
    """Offset in (N, T, L) of a token's value at a node, and whether the node is on its path; arguments broadcast."""
    at = token * trees + tree
    end = tl.load(leaf + at, mask=inside, other=0) + 1
    return at * (DEPTH + 1) + level, ((end >> (DEPTH - level)) == label) & inside & real


@triton.jit
def _product(a, b, total, PRECISION: tl.constexpr, WIDEN: tl.constexpr):
    """total + a @ b in float32. WIDEN: Triton's interpreter would multiply the bits of bfloat16 as integers."""
    if WIDEN:
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _dots(
    x, w, token, inside, row, real, width, total,
    BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """total (tokens, nodes) + x[token] . w[row]."""
    for start in range(0, width, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        within = h < width
        part = tl.load(x + token[:, None] * width + h[None, :], mask=inside[:, None] & within[None, :], other=0.0)
        rows = tl.load(w + row[None, :] * width + h[:, None], mask=real[None, :] & within[:, None], other=0.0)
        total = _product(part, rows, total, PRECISION, WIDEN)
    return total


@triton.jit(do_not_specialize=["tokens"])
def walk_band(
    x, w, bias, flips, order, starts, scores, places, tokens, width, groups,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr,
    GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_FLIPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """Scores (N, T, L) of a band's path nodes; places: leaves (N, T) after the last band, else the next groups (T, N).

    A program has one piece of a group: all scores of its tokens and the subtree in registers, then the walk down.
    """
    tree = tl.program_id(1).to(tl.int64)
    group, first, stop, some = _piece(starts, tree, tl.program_id(0), tokens, groups, GROUPS, BLOCK_N, False)
    if not some:
        return
    position = first + tl.arange(0, BLOCK_N)
    inside = position < stop
    token = _token(order, tree, position, inside, tokens, GROUPS)
    column = tl.arange(0, NODES)
    label, _, real = _subtree(column, group, LEVEL, LEVELS)
    row = tree * NODE_COUNT + label - 1
    total = tl.zeros((BLOCK_N, NODES), tl.float32)
    total = _dots(x, w, token, inside, row, real, width, total, BLOCK_H, PRECISION, WIDEN)
    if HAS_BIAS:
        total += tl.load(bias + row, mask=real, other=0.0).to(tl.float32)[None, :]
    at = token * tl.num_programs(1) + tree
    local = position * 0
    for level in tl.static_range(LEVELS):
        score = tl.sum(tl.where(column[None, :] == local[:, None], total, 0.0), 1)
        tl.store(scores + at * (DEPTH + 1) + LEVEL + level, score, mask=inside)
        if LEVEL + level < DEPTH:
            right = score > 0
            if HAS_FLIPS:
                right = right ^ (tl.load(flips + at * DEPTH + LEVEL + level, mask=inside, other=0) != 0)
            local = 2 * local + 1 + right.to(tl.int32)
    if LEVEL + LEVELS > DEPTH:
        tl.store(places + at, (((1 << LEVEL) + group - 1) << (LEVELS - 1)) + local, mask=inside)
    else:
        tl.store(places + tree * tokens + token, (group << LEVELS) + local + 1 - (1 << LEVELS), mask=inside)


@triton.jit(do_not_specialize=["tokens"])
def path_dots(
    x, w, leaf, order, starts, dots, tokens, width, groups,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr,
    ABOVE: tl.constexpr, GROUPS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """dots (N, T, L) = x[n] . w[path node], of all levels, the last band's order given."""
    tree = tl.program_id(1).to(tl.int64)
    trees = tl.num_programs(1)
    group, first, stop, some = _piece(starts, tree, tl.program_id(0), tokens, groups, GROUPS, BLOCK_N, False)
    if not some:
        return
    position = first + tl.arange(0, BLOCK_N)
    inside = position < stop
    token = _token(order, tree, position, inside, tokens, GROUPS)
    label, level, real = _subtree(tl.arange(0, NODES), group, LEVEL, LEVELS)
    total = tl.zeros((BLOCK_N, NODES), tl.float32)
    row = tree * NODE_COUNT + label - 1
    total = _dots(x, w, token, inside, row, real, width, total, BLOCK_H, PRECISION, WIDEN)
    offset, visited = _on_path(
        leaf, token[:, None], inside[:, None], label[None, :], level[None, :], real[None, :], tree, trees, DEPTH
    )
    tl.store(dots + offset, total, mask=visited)
    if LEVEL > 0:
        label, level, real = _above(tl.arange(0, ABOVE), group, LEVEL)
        total = tl.zeros((BLOCK_N, ABOVE), tl.float32)
        row = tree * NODE_COUNT + label - 1
        total = _dots(x, w, token, inside, row, real, width, total, BLOCK_H, PRECISION, WIDEN)
        offset, visited = _on_path(
            leaf, token[:, None], inside[:, None], label[None, :], level[None, :], real[None, :], tree, trees, DEPTH
        )
        tl.store(dots + offset, total, mask=visited)


@triton.jit
def _add_rows(
    coefficients, w, leaf, token, inside, label, level, real, h, width, tree, trees, total,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """total (tokens, columns) + coefficients of the path nodes among these nodes times their rows."""
    offset, visited = _on_path(
        leaf, token[:, None], inside[:, None], label[None, :], level[None, :], real[None, :], tree, trees, DEPTH
    )
    weights = tl.load(coefficients + offset, mask=visited, other=0.0).to(w.dtype.element_ty)
    row = label.to(tl.int64) - 1 + tree * NODE_COUNT
    rows = tl.load(w + row[:, None] * width + h[None, :], mask=real[:, None] & (h < width)[None, :], other=0.0)
    return _product(weights, rows, total, PRECISION, WIDEN)


@triton.jit(do_not_specialize=["tokens", "tree_first", "tree_stop"])
def weighted_rows(
    coefficients, w, leaf, order, starts, y, tokens, width, groups, trees, tree_first, tree_stop,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr,
    ABOVE: tl.constexpr, GROUPS: tl.constexpr, ADD: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """y (N, width), plus itself if ADD: sum over path nodes of coefficients (N, T, L) times rows of w, of these trees.

    Several trees at once only where they have one group, and so the same order.
    """
    tree_first = tree_first.to(tl.int64)
    group, first, stop, some = _piece(starts, tree_first, tl.program_id(0), tokens, groups, GROUPS, BLOCK_N, False)
    if not some:
        return
    position = first + tl.arange(0, BLOCK_N)
    inside = position < stop
    token = _token(order, tree_first, position, inside, tokens, GROUPS)
    h = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    at = y + token[:, None] * width + h[None, :]
    within = inside[:, None] & (h < width)[None, :]
    total = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    if ADD:
        total += tl.load(at, mask=within, other=0.0).to(tl.float32)
    label, level, real = _subtree(tl.arange(0, NODES), group, LEVEL, LEVELS)
    if LEVEL > 0:
        upper, upper_level, upper_real = _above(tl.arange(0, ABOVE), group, LEVEL)
        total = _add_rows(
            coefficients, w, leaf, token, inside, upper, upper_level, upper_real, h, width, tree_first, trees, total,
            NODE_COUNT, DEPTH, PRECISION, WIDEN,
        )
        total = _add_rows(
            coefficients, w, leaf, token, inside, label, level, real, h, width, tree_first, trees, total,
            NODE_COUNT, DEPTH, PRECISION, WIDEN,
        )
    else:
        for tree in range(tree_first, tree_stop):
            total = _add_rows(
                coefficients, w, leaf, token, inside, label, level, real, h, width, tree, trees, total,
                NODE_COUNT, DEPTH, PRECISION, WIDEN,
            )
    tl.store(at, total.to(y.dtype.element_ty), mask=within)


@triton.jit(do_not_specialize=["tokens"])
def node_sums(
    coefficients, x, leaf, order, starts, sums, plain, partial, partial_plain, tokens, width, groups, places,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr,
    GROUPS: tl.constexpr, CHUNK: tl.constexpr, PLAIN: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, PRECISION: tl.constexpr, WIDEN: tl.constexpr,
):
    """sums (T, M, width) of a band's nodes: over the tokens that visit one, coefficient (N, T, L) times x[n].

    If PLAIN also plain (T, M), the coefficients' own sums. A group with more than CHUNK tokens is cut; its pieces' sums
    go to partial (T, places, NODES, width) and partial_plain, see `add_partials`. Groups without tokens are written as
    zeros. No atomics: one order, the same bits on every run.
    """
    tree = tl.program_id(2).to(tl.int64)
    trees = tl.num_programs(2)
    group, first, stop, some = _piece(starts, tree, tl.program_id(0), tokens, groups, GROUPS, CHUNK, True)
    if not some:
        return
    begin, pieces, place = _partials(starts, tree, group, tokens, groups, GROUPS, CHUNK)
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    within = h < width
    column = tl.arange(0, NODES)
    label, level, real = _subtree(column, group, LEVEL, LEVELS)
    total = tl.zeros((NODES, BLOCK_H), tl.float32)
    seen = tl.zeros((NODES, BLOCK_N), tl.float32)
    for start in range(first, stop, BLOCK_N):
        position = start + tl.arange(0, BLOCK_N)
        inside = position < stop
        token = _token(order, tree, position, inside, tokens, GROUPS)
        offset, visited = _on_path(
            leaf, token[None, :], inside[None, :], label[:, None], level[:, None], real[:, None], tree, trees, DEPTH
        )
        weights = tl.load(coefficients + offset, mask=visited, other=0.0)
        part = tl.load(x + token[:, None] * width + h[None, :], mask=inside[:, None] & within[None, :], other=0.0)
        total = _product(weights.to(x.dtype.element_ty), part, total, PRECISION, WIDEN)
        if PLAIN:
            seen += weights  # added up after the loop: Triton 3.6 does not compile a sum here
    count = tl.sum(seen, 1)
    written = real[:, None] & within[None, :]
    row = tree * NODE_COUNT + label - 1
    if pieces < 2:
        tl.store(sums + row[:, None] * width + h[None, :], total.to(sums.dtype.element_ty), mask=written)
        if PLAIN:
            tl.store(plain + row, count.to(plain.dtype.element_ty), mask=real & (tl.program_id(1) == 0))
    else:
        row = (tree * places + place + (first - begin) // CHUNK) * NODES + column
        tl.store(partial + row[:, None] * width + h[None, :], total, mask=written)
        if PLAIN:
            tl.store(partial_plain + row, count, mask=real & (tl.program_id(1) == 0))


@triton.jit(do_not_specialize=["tokens"])
def add_partials(
    starts, sums, plain, partial, partial_plain, tokens, width, groups, places,
    NODE_COUNT: tl.constexpr, LEVEL: tl.constexpr, LEVELS: tl.constexpr, NODES: tl.constexpr, GROUPS: tl.constexpr,
    CHUNK: tl.constexpr, PLAIN: tl.constexpr, BLOCK_H: tl.constexpr,
):
    """What `node_sums` left in its partial sums, added from the first piece of a group to its last."""
    group = tl.program_id(0)
    tree = tl.program_id(2).to(tl.int64)
    _, pieces, place = _partials(starts, tree, group, tokens, groups, GROUPS, CHUNK)
    if pieces < 2:
        return
    h = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    column = tl.arange(0, NODES)
    label, _, real = _subtree(column, group, LEVEL, LEVELS)
    written = real[:, None] & (h < width)[None, :]
    total = tl.zeros((NODES, BLOCK_H), tl.float32)
    count = tl.zeros((NODES,), tl.float32)
    for piece in range(pieces):
        row = (tree * places + place + piece) * NODES + column
        total += tl.load(partial + row[:, None] * width + h[None, :], mask=written, other=0.0)
        if PLAIN:
            count += tl.load(partial_plain + row, mask=real, other=0.0)
    row = tree * NODE_COUNT + label - 1
    tl.store(sums + row[:, None] * width + h[None, :], total.to(sums.dtype.element_ty), mask=written)
    if PLAIN:
        tl.store(plain + row, count.to(plain.dtype.element_ty), mask=real & (tl.program_id(1) == 0))


@triton.jit
def _activate(score, ACTIVATION: tl.constexpr):
    """fff.activations in float32. relu and the sigmoids by comparisons and quotients that hand on a NaN."""
    if ACTIVATION == "gelu":
        result = 0.5 * score * (1 + tl.erf(score * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        result = score / (1 + tl.exp(-1.5957691216057308 * (score + 0.044715 * score * score * score)))
    elif ACTIVATION == "silu":
        result = score / (1 + tl.exp(-score))
    elif ACTIVATION == "tanh":
        result = 2 / (1 + tl.exp(-2 * score)) - 1
    elif ACTIVATION == "relu":
        result = tl.where(score <= 0, 0.0, score)
    else:
        tl.static_assert(ACTIVATION == "identity")
        result = score
    return result


@triton.jit(do_not_specialize=["tokens"])
def walk_token(
    x, w_in, bias, w_out, flips, y, leaf, scores, tokens, width, width_out, trees, share,
    NODE_COUNT: tl.constexpr, DEPTH: tl.constexpr, ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_FLIPS: tl.constexpr, SAVE: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """One token's walk through `share` trees, x and y in registers: y (shares, N, K); leaves and scores if SAVE."""
    token = tl.program_id(0).to(tl.int64)
    h = tl.arange(0, BLOCK_H)
    k = tl.arange(0, BLOCK_K)
    x_h = tl.load(x + token * width + h, mask=h < width, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_K,), tl.float32)
    first = tl.program_id(1).to(tl.int64) * share
    for tree in range(first, tl.minimum(first + share, trees)):
        at = token * trees + tree
        label = token * 0 + 1  # int64
        for level in range(DEPTH + 1):
            row = label - 1 + tree * NODE_COUNT
            row_in = tl.load(w_in + row * width + h, mask=h < width, other=0.0).to(tl.float32)
            # Asked for before the score is known, so that one trip to memory serves both.
            row_out = tl.load(w_out + row * width_out + k, mask=k < width_out, other=0.0).to(tl.float32)
            score = tl.sum(x_h * row_in, 0)
            if HAS_BIAS:
                score += tl.load(bias + row).to(tl.float32)
            total += _activate(score, ACTIVATION) * row_out
            right = score > 0
            if HAS_FLIPS:
                right = right ^ (tl.load(flips + at * DEPTH + level, mask=level < DEPTH, other=0) != 0)
            if SAVE:
                tl.store(scores + at * (DEPTH + 1) + level, score)
            label = 2 * label + right.to(tl.int32)
        if SAVE:
            tl.store(leaf + at, (label >> 1) - 1)
    out = (tl.program_id(1).to(tl.int64) * tokens + token) * width_out
    tl.store(y + out + k, total.to(y.dtype.element_ty), mask=k < width_out)


# Whether Triton was set to interpret when it and this module were loaded; later changes of its setting do nothing.
# Asked this way round, because the interpreter's own module would import NumPy, which fff does without.
INTERPRETED = not (isinstance(walk_token, triton.JITFunction) or isinstance(tl.sum, triton.JITFunction))

// Down the tree: which leaf each token of a block reaches, and the scores on its way. Not what the nodes add.
//
// Depth first over lists of tokens: a node's list is scored against the node and both of its children at once, two
// levels for one pass over the tokens, and divided into the four grandchildren's lists. A list of more tokens than a
// core's cache holds goes down kFarLevels a stretch of kNear at a time, so that a token is fetched from memory once for
// those levels, and the stretches are gathered into one list per node below. Tokens end in the order of their leaves,
// and a subtree's rows stay in cache while its lists are walked. Lists of one token go down level by level, several
// together.
#pragma once

#include <algorithm>
#include <vector>

#include "products.h"

namespace fff {

constexpr int64_t kNear = 128;  // tokens that a core's cache holds beside the rows of a subtree
constexpr int kFarLevels = 6;
constexpr int kTogether = 8;  // lists of one token that are walked at the same time

// The node at a level on the path to a leaf, in heap order.
inline int64_t ancestor(int64_t leaf, int64_t depth, int64_t level) { return ((leaf + 1) >> (depth - level)) - 1; }

// Where the tokens of a block are in one tree: order (tokens) sorted by leaf, and the leaf's node of each order[i].
struct Sorted {
  int32_t* order;
  int32_t* leaf;
};

template <class V>
inline typename V::value_type* at_least(V& vector, int64_t size) {
  if (static_cast<int64_t>(vector.size()) < size) vector.resize(size);
  return vector.data();
}

// Vectors that keep their memory between blocks.
struct WalkSpace {
  struct List {
    int32_t node, level;
    int64_t begin, end;
  };
  std::vector<List> far, near, single;
  std::vector<int32_t> wanted;  // nodes of lists that wait, in the order in which they will be walked
  std::vector<int32_t> spare;
  std::vector<uint8_t> branch;
};

// f(begin, end, leaf) for each stretch of a block's sorted tokens that share a leaf.
template <class F>
inline void for_leaves(const Sorted& sorted, int64_t tokens, const F& f) {
  for (int64_t begin = 0, end; begin < tokens; begin = end) {
    for (end = begin + 1; end < tokens && sorted.leaf[end] == sorted.leaf[begin];) ++end;
    f(begin, end, sorted.leaf[begin]);
  }
}

// f.operator()<count>(), 1 <= count <= most.
template <int most, class F>
inline void for_count(int count, const F& f) {
  if constexpr (most > 1)
    if (count < most) return for_count<most - 1>(count, f);
  f.template operator()<most>();
}

// f.operator()<T>(at) for [begin, end) in blocks of `most`, then what is left as one smaller block.
template <int most, class F>
inline void in_blocks(int64_t begin, int64_t end, const F& f) {
  static_assert(most == 3 || most == 4);
  for (; begin + most <= end; begin += most) f.template operator()<most>(begin);
  switch (end - begin) {
    case 3: return f.template operator()<3>(begin);
    case 2: return f.template operator()<2>(begin);
    case 1: return f.template operator()<1>(begin);
  }
}

// A node's score from its dot with a token.
template <class E>
struct Biased {
  using Dot = float;
  const E* b_in;  // (nodes) or null
  float operator()(float dot, int64_t, int64_t node) const {
    return dot + (b_in ? static_cast<float>(b_in[node]) : 0.0f);
  }
};

// One tree, one block of tokens.
template <class E, class Score = Biased<E>>
struct Walk {
  using Dot = typename Score::Dot;

  const E* x;         // (tokens, width)
  const E* w_in;      // (nodes, width)
  Score score;        // (dot, token, node)
  const bool* flips;  // (tokens, flip_stride): decisions turned round, or null
  float* scores;      // (tokens, stride): out, depth + 1 of each token
  int64_t width, depth, stride, flip_stride;
  Sorted sorted;  // out
  WalkSpace& space;
  size_t next_wanted = 0;
  int64_t next_token = 0, last_token = 0;
  bool several = false;  // more than one token in the block

  using List = WalkSpace::List;

  void run(int64_t tokens) {
    for (int64_t i = 0; i < tokens; ++i) sorted.order[i] = static_cast<int32_t>(i);
    at_least(space.spare, tokens);
    at_least(space.branch, tokens);
    auto& far = space.far;
    // Not empty where memory gave out in the call before.
    far.clear(), space.near.clear(), space.single.clear();
    if (tokens) far.push_back({0, 0, 0, tokens});
    several = tokens > 1;
    while (!far.empty()) {
      const List list = far.back();
      far.pop_back();
      if (list.end - list.begin <= kNear) {
        fetch_tokens(list.end, far.empty() ? list.end : far.back().end);
        descend(list, depth);
        continue;
      }
      const int32_t stop = static_cast<int32_t>(std::min<int64_t>(list.level + kFarLevels, depth));
      for (int64_t at = list.begin; at < list.end; at += kNear) {
        const int64_t end = std::min(at + kNear, list.end);
        fetch_tokens(end, end < list.end || far.empty() ? list.end : far.back().end);
        descend({list.node, list.level, at, end}, stop);
      }
      gather(list, stop);
    }
  }

 private:
  const E* row(int64_t node) const { return w_in + node * width; }
  bool right(float score, int64_t token, int64_t level) const {
    return (score > 0) != (flips && flips[token * flip_stride + level]);
  }

  // From a list down to level `stop`; sorted.leaf takes the nodes that are reached there.
  void descend(const List& from, int64_t stop) {
    auto& near = space.near;
    near.push_back(from);
    space.wanted.clear();
    next_wanted = 0;
    while (!near.empty()) {
      const List list = near.back();
      near.pop_back();
      if (list.level == stop && stop < depth) {
        std::fill(sorted.leaf + list.begin, sorted.leaf + list.end, list.node);
      } else if (several && list.end - list.begin == 1) {
        space.single.push_back(list);
      } else if (list.level == depth) {
        last_level(list);
      } else {
        two_levels(list);
      }
    }
    walk_single(stop);
  }

  // Lists of one token, some of them at the same time: each fetches only the rows of its path, while the others' rows
  // are on their way. (A token that is alone in its block goes two levels at a time: it would wait for each dot.)
  void walk_single(int64_t stop) {
    auto& waiting = space.single;
    List lists[kTogether];
    for (int count = 0; count || !waiting.empty();) {
      for (; count < kTogether && !waiting.empty(); waiting.pop_back()) lists[count++] = waiting.back();
      Dot dot[kTogether] = {};
      for_count<kTogether>(count, [&]<int T>() { dots_of<T>(lists, dot); });
      for (int i = count; i-- > 0;)
        if (step_down(lists[i], dot[i], stop)) lists[i] = lists[--count];
    }
  }

  template <int T>
  void dots_of(const List* lists, Dot* dot) {
    const E *tokens[T], *rows[T];
    for (int t = 0; t < T; ++t) {
      tokens[t] = x + static_cast<int64_t>(sorted.order[lists[t].begin]) * width;
      rows[t] = row(lists[t].node);
    }
    pair_dots<T>(tokens, rows, width, dot, ahead());
  }

  // One level for a list of one token; true if it has arrived.
  bool step_down(List& list, Dot dot, int64_t stop) {
    const int64_t token = sorted.order[list.begin];
    const float found = scores[token * stride + list.level] = score(dot, token, list.node);
    if (list.level < depth) {
      list.node = 2 * list.node + 1 + right(found, token, list.level);
      if (++list.level < stop || stop == depth) return false;
    }
    sorted.leaf[list.begin] = list.node;
    return true;
  }

  void last_level(const List& list) {
    const E* rows[1] = {row(list.node)};
    each_token(list, rows, [&](int64_t at, int64_t token, const Dot(&dot)[1]) {
      scores[token * stride + list.level] = score(dot[0], token, list.node);
      sorted.leaf[at] = list.node;
    });
  }

  void two_levels(const List& list) {
    const int32_t left = 2 * list.node + 1;
    const E* rows[3] = {row(list.node), row(left), row(left + 1)};
    const bool last = list.level + 1 == depth;
    each_token(list, rows, [&](int64_t at, int64_t token, const Dot(&dot)[3]) {
      float* found = scores + token * stride + list.level;
      found[0] = score(dot[0], token, list.node);
      const bool first = right(found[0], token, list.level);
      found[1] = score(dot[1 + first], token, left + first);
      space.branch[at] = last ? first : 2 * first + right(found[1], token, list.level + 1);
    });
    int64_t start[5];
    const int ways = last ? 2 : 4;
    const int32_t leftmost = last ? left : 2 * left + 1;
    divide(list, ways, start);
    for (int way = ways - 1; way >= 0; --way) {
      if (last) {
        std::fill(sorted.leaf + start[way], sorted.leaf + start[way + 1], leftmost + way);
      } else if (start[way] != start[way + 1]) {
        space.near.push_back({leftmost + way, list.level + 2, start[way], start[way + 1]});
      }
    }
    for (int way = 0; !last && way < ways; ++way)
      if (start[way] != start[way + 1]) want(leftmost + way, list.level + 2);
  }

  // The list's stretches, each sorted by its node at level `stop`, become one list per node.
  void gather(const List& list, int32_t stop) {
    const int ways = 1 << (stop - list.level);
    const int32_t leftmost = ((list.node + 1) << (stop - list.level)) - 1;
    for (int64_t i = list.begin; i < list.end; ++i) space.branch[i] = static_cast<uint8_t>(sorted.leaf[i] - leftmost);
    int64_t start[(1 << kFarLevels) + 1];
    divide(list, ways, start);
    for (int way = ways - 1; way >= 0; --way) {
      if (stop == depth) {
        std::fill(sorted.leaf + start[way], sorted.leaf + start[way + 1], leftmost + way);
      } else if (start[way] != start[way + 1]) {
        space.far.push_back({leftmost + way, stop, start[way], start[way + 1]});
      }
    }
  }

  // Lists lie in `order` in the order in which they will be walked: the next stretch's tokens follow this one's.
  void fetch_tokens(int64_t begin, int64_t end) {
    next_token = begin;
    last_token = std::min(end, begin + kNear);
  }

  void want(int32_t node, int64_t level) {
    space.wanted.push_back(node);
    if (level == depth) return;
    space.wanted.push_back(2 * node + 1);
    space.wanted.push_back(2 * node + 2);
  }

  Ahead<E> ahead() {
    const E* wanted = next_wanted < space.wanted.size() ? row(space.wanted[next_wanted++]) : w_in;
    const E* token = next_token < last_token ? x + static_cast<int64_t>(sorted.order[next_token++]) * width : wanted;
    return {wanted, token};
  }

  // f(position, token, its dots with the rows) for every token of the list.
  template <int N, class F>
  void each_token(const List& list, const E* const (&rows)[N], const F& f) {
    in_blocks<kDotTokens>(list.begin, list.end, [&]<int T>(int64_t at) {
      const E* tokens[T];
      for (int t = 0; t < T; ++t) tokens[t] = x + static_cast<int64_t>(sorted.order[at + t]) * width;
      Dot dot[T][N];
      dots<T, N>(tokens, rows, width, dot, ahead());
      for (int t = 0; t < T; ++t) f(at + t, sorted.order[at + t], dot[t]);
    });
  }

  // Counting sort of the list by branch, stable; branch `way` comes to lie in [start[way], start[way + 1]).
  void divide(const List& list, int ways, int64_t* start) {
    const auto& branch = space.branch;
    int64_t next[1 << kFarLevels] = {};
    for (int64_t i = list.begin; i < list.end; ++i) ++next[branch[i]];
    start[0] = list.begin;
    for (int way = 0; way < ways; ++way) start[way + 1] = start[way] + next[way], next[way] = start[way];
    for (int64_t i = list.begin; i < list.end; ++i) space.spare[next[branch[i]]++] = sorted.order[i];
    std::copy(space.spare.begin() + list.begin, space.spare.begin() + list.end, sorted.order + list.begin);
  }
};

}  // namespace fff

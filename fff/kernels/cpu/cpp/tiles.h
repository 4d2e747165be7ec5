// Exact products of tokens of bytes with rows of bytes that were packed for it. Not the rows' scales.
//
// Packed, 16 rows are a group: a line of 64 bytes has four neighbouring numbers of each of them. The processor's tiles
// (AMX) take 16 such lines and 16 tokens at a time; where tokens are few, and without tiles, a line is multiplied with
// four bytes of a token, in all its places. Sums are exact, so nobody can tell which it was.
#pragma once

#include "int8.h"

#if defined(__AMX_INT8__) && defined(__linux__)
#define FFF_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fff {

constexpr int kGroup = 16, kQuad = 4, kTileLines = 16;
constexpr int64_t kTileTokens = 16, kMostTokens = 2 * kTileTokens;  // of one call
constexpr int64_t kFewTokens = 3;                                   // up to here lines win over tiles of 16 tokens

// Rows of `groups` groups, each of `quads` lines; quads is at most kTileLines or a multiple of it.
struct Packed {
  const int8_t* at;
  int64_t groups, quads;
  int64_t ahead = 0;  // bytes from a line to the one of the rows that will be wanted next, which memory is asked for
  int64_t rows() const { return groups * kGroup; }
  int64_t bytes() const { return groups * quads * kLineBytes; }
  int64_t token_bytes() const { return quads * kQuad; }
  Packed number(int64_t i, int64_t next) const { return {at + i * bytes(), groups, quads, (next - i) * bytes()}; }
};

// The sums of a line's rows with one token.
#if defined(FFF_VNNI)
struct LineSum {
  Quads parts[kLineBytes / sizeof(Quads)] = {};
};
#if defined(__AVX512F__)
constexpr int kLineTokens = 4, kLineGroups = 4;
inline Quads everywhere(const int8_t* four) { return _mm512_set1_epi32(read<int32_t>(four)); }
#else
constexpr int kLineTokens = 3, kLineGroups = 1;
inline Quads everywhere(const int8_t* four) { return _mm256_set1_epi32(read<int32_t>(four)); }
#endif

template <int T, int N>
inline void add_line(const int8_t* const (&x)[T], const int8_t* const (&lines)[N], LineSum (&sums)[T][N]) {
  for (size_t part = 0; part < kLineBytes / sizeof(Quads); ++part) {
    Quads rows[N];
    for (int n = 0; n < N; ++n) rows[n] = raised(lines[n] + part * sizeof(Quads));
    for (int t = 0; t < T; ++t) {
      const Quads token = everywhere(x[t]);
      for (int n = 0; n < N; ++n) sums[t][n].parts[part] = add_products(sums[t][n].parts[part], rows[n], token);
    }
  }
}
#else
struct LineSum {
  uint32_t parts[kGroup] = {};
};
constexpr int kLineTokens = 3, kLineGroups = 1;

template <int T, int N>
inline void add_line(const int8_t* const (&x)[T], const int8_t* const (&lines)[N], LineSum (&sums)[T][N]) {
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n)
      for (int row = 0; row < kGroup; ++row) {
        int32_t sum = 0;
        for (int i = 0; i < kQuad; ++i) sum += x[t][i] * lines[n][row * kQuad + i];
        sums[t][n].parts[row] += static_cast<uint32_t>(sum);
      }
}
#endif

// to[t][row] over T tokens and N groups; `added`: what the sums of each token have too much (int8.h).
template <int T, int N>
inline void line_block(const int8_t* tokens, int64_t stride, const uint32_t* added, const int8_t* rows, int64_t quads,
                       int64_t ahead, int32_t* to, int64_t to_stride) {
  LineSum sums[T][N];
  for (int64_t quad = 0; quad < quads; ++quad) {
    const int8_t *x[T], *lines[N];
    for (int t = 0; t < T; ++t) x[t] = tokens + t * stride + quad * kQuad;
    for (int n = 0; n < N; ++n) {
      lines[n] = rows + (n * quads + quad) * kLineBytes;
      __builtin_prefetch(lines[n] + ahead, 0, 2);
    }
    add_line<T, N>(x, lines, sums);
  }
  for (int t = 0; t < T; ++t)
    for (int n = 0; n < N; ++n) {
      uint32_t found[kGroup];
      std::memcpy(found, sums[t][n].parts, sizeof(found));
      for (int row = 0; row < kGroup; ++row)
        to[t * to_stride + n * kGroup + row] = static_cast<int32_t>(found[row] - added[t]);
    }
}

inline void by_lines(const int8_t* tokens, int64_t stride, const uint32_t* added, int64_t count, const Packed& rows,
                     int32_t* to) {
  in_blocks<kLineTokens>(0, count, [&]<int T>(int64_t token) {
    const auto groups = [&]<int N>(int64_t group) {
      line_block<T, N>(tokens + token * stride, stride, added + token, rows.at + group * rows.quads * kLineBytes,
                       rows.quads, rows.ahead, to + token * rows.rows() + group * kGroup, rows.rows());
    };
    int64_t group = 0;
    for (; group + kLineGroups <= rows.groups; group += kLineGroups) groups.template operator()<kLineGroups>(group);
    for (; group < rows.groups; ++group) groups.template operator()<1>(group);
  });
}

#if defined(FFF_TILES)
// Which tiles there are: 0 to 3 sums, 4 and 5 tokens, 6 and 7 rows.
struct alignas(kLineBytes) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Whether the system lets this process use them; asked once.
inline bool tiles_allowed() {
  constexpr int kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  static const bool allowed = syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
  return allowed;
}

// The processor's tiles while there is one: shaped for rows of some lines, and given back at the end.
class Tiles {
 public:
  Tiles() : allowed_(tiles_allowed()) {}
  Tiles(const Tiles&) = delete;
  ~Tiles() {
    if (lines_) _tile_release();
  }

  bool take(int64_t quads) {
    const int64_t lines = std::min<int64_t>(quads, kTileLines);
    if (!allowed_ || lines == lines_) return allowed_;
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) {
      shapes.rows[tile] = static_cast<uint8_t>(tile < 6 ? kTileTokens : lines);
      shapes.row_bytes[tile] = static_cast<uint16_t>(tile == 4 || tile == 5 ? lines * kQuad : kLineBytes);
    }
    asm volatile("" ::: "memory");  // the compiler does not see what the instruction reads, here and below
    _tile_loadconfig(&shapes);
    lines_ = lines;
    return true;
  }

 private:
  bool allowed_;
  int64_t lines_ = 0;
};

// Where lines of groups lie, in bytes from one to the next.
struct Lines {
  int64_t line, group, quads, ahead;
};

// A blocks of 16 tokens with N groups.
template <int A, int N>
inline void tile_block(const int8_t* tokens, int64_t stride, const int8_t* rows, const Lines& lines, int32_t* to,
                       int64_t to_stride) {
  const int8_t *const more = tokens + kTileTokens * stride, *const others = rows + lines.group;
  _tile_zero(0);
  if constexpr (N > 1) _tile_zero(1);
  if constexpr (A > 1) _tile_zero(2);
  if constexpr (A > 1 && N > 1) _tile_zero(3);
  for (int64_t quad = 0; quad < lines.quads; quad += kTileLines) {
    _tile_loadd(4, tokens + quad * kQuad, stride);
    _tile_loadd(6, rows + quad * lines.line, lines.line);
    if (lines.ahead)
      for (int64_t line = quad; line < std::min(lines.quads, quad + kTileLines); ++line)
        for (int n = 0; n < N; ++n) __builtin_prefetch(rows + lines.ahead + n * lines.group + line * lines.line, 0, 2);
    if constexpr (A > 1) _tile_loadd(5, more + quad * kQuad, stride);
    if constexpr (N > 1) _tile_loadd(7, others + quad * lines.line, lines.line);
    _tile_dpbssd(0, 4, 6);
    if constexpr (N > 1) _tile_dpbssd(1, 4, 7);
    if constexpr (A > 1) _tile_dpbssd(2, 5, 6);
    if constexpr (A > 1 && N > 1) _tile_dpbssd(3, 5, 7);
  }
  const int64_t bytes = to_stride * sizeof(int32_t);
  _tile_stored(0, to, bytes);
  if constexpr (N > 1) _tile_stored(1, to + kGroup, bytes);
  if constexpr (A > 1) _tile_stored(2, to + kTileTokens * to_stride, bytes);
  if constexpr (A > 1 && N > 1) _tile_stored(3, to + kTileTokens * to_stride + kGroup, bytes);
}

inline void by_tiles(const int8_t* tokens, int64_t stride, int64_t count, const Packed& rows, int32_t* to) {
  const Lines lines{kLineBytes, rows.quads * kLineBytes, rows.quads, rows.ahead};
  const auto groups = [&]<int N>(int64_t group) {
    const int8_t* const from = rows.at + group * lines.group;
    int32_t* const sums = to + group * kGroup;
    if (count > kTileTokens) tile_block<2, N>(tokens, stride, from, lines, sums, rows.rows());
    else tile_block<1, N>(tokens, stride, from, lines, sums, rows.rows());
  };
  asm volatile("" ::: "memory");
  int64_t group = 0;
  for (; group + 2 <= rows.groups; group += 2) groups.template operator()<2>(group);
  if (group < rows.groups) groups.template operator()<1>(group);
  asm volatile("" ::: "memory");
}
#else
struct Tiles {};
#endif

// to (count, rows) = tokens (count, stride) . rows, at most kMostTokens of them. Of tokens and sums there must be
// memory for kMostTokens, whatever is in it.
inline void products(Tiles& tiles, const int8_t* tokens, int64_t stride, const uint32_t* added, int64_t count,
                     const Packed& rows, int32_t* to) {
#if defined(FFF_TILES)
  if (count > kFewTokens && tiles.take(rows.quads)) return by_tiles(tokens, stride, count, rows, to);
#endif
  by_lines(tokens, stride, added, count, rows, to);
}

}  // namespace fff

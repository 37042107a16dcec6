// What synthesis.inl is given: see lexico_codec/kernels/synthesis/products.py.
#pragma once

#include <atomic>
#include <cstdint>

#include "layout.h"
#include "lexico.h"

namespace lexico {

constexpr int64_t kPanel = 64;   // columns of a matrix that lie together
constexpr int64_t kSome = 2 * kBlockTokens; // tokens that share a matrix while a cache has it
constexpr int64_t kColumns = 64; // of Q that lie together
constexpr int64_t kListed = 128; // rows of Q that are listed together, at most: with those, a tile
constexpr int64_t kStrong = 32;  // of the first kListed, the strongest, so many: finer units

// Tiles of so many rows, and the first row of each.
inline int64_t tiles_of(int64_t rows) {
    if (rows <= kListed) return (rows + kStrong - 1) / kStrong;
    return kListed / kStrong - 1 + (rows + kListed - 1) / kListed;
}
inline int64_t first_of(int64_t tile) {
    constexpr int64_t strong = kListed / kStrong;
    return tile < strong ? tile * kStrong : (tile - strong + 1) * kListed;
}

struct Entry { // what a token has of a row
    float value;
    int32_t row;
};
struct Short { // the same in units of its token's 64 rows
    int32_t twice; // the value, in both halves
    int32_t place; // of the row in a tile
};
constexpr float kMostShort = 32600; // what the norm of values is then: 32767 less what rounding adds
constexpr float kLeastNorm = 1e-30f, kMostNorm = 1e18f; // whose squares are numbers

struct Synthesis { // lexico_synthesise
    int64_t components, tokens, second, kept; // second: R; kept: of them, all others are zero
    const float* arranged;   // [components + second, tokens], or with `where`
    const int32_t* where;    // as of Arranging: [blocks of tokens, components + second, 32]
    const int64_t* selected; // [second], rising: rows of z that Q makes
    const int16_t* cross;    // Q in panels: [(second + 63) / 64, second, 64], in units
    const float* cross_units; // [(second + 63) / 64, tiles_of(second)] of a panel's tiles
    const float* bases;      // in panels: [tables, blocks, (d + 63) / 64, d, 64], of all tables
    int64_t blocks, d;
    int64_t first_table, tables; // wanted
    int64_t start, stop;         // columns of a table that are wanted
    float* out;                  // [tables, tokens, stop - start], or null:
    const Laying* laying;        // their rows go where these lie, finished

    // Of kSome tokens from `from` on.
    int64_t from = 0, some = 0;
    Short* lists;    // [chunks, kSome * kListed] the second components that are not zero
    float* units;    // [chunks, kSome] of theirs
    int32_t* starts; // [chunks, kSome + 1] of each token in its chunk's
    float* z;        // [panels, kSome, kPanel] what Q makes of them
    int64_t first_panel = 0, last_panel = 0; // that the wanted tables need
    std::atomic<int64_t> next{0};
    std::atomic<int> status{kOk};

    // A row's values of a block of tokens, `first` from `from` on; null: they are 0.
    const float* values(int64_t row, int64_t first) const {
        const int64_t rows = components + second, block = (from + first) / kBlockTokens;
        if (!where) return arranged + row * tokens + from + first;
        const int64_t place = where[block * rows + row];
        return place ? arranged + (block * rows + place - 1) * kBlockTokens : nullptr;
    }
    int64_t chunks() const { return tiles_of(kept); }
    int64_t tiles() const { return tiles_of(second); } // of a panel of Q
    int64_t panels() const { return (d + kPanel - 1) / kPanel; } // of a block
    int64_t first_block() const { return start / d; }
    int64_t wanted_blocks() const { return (stop + d - 1) / d - first_block(); }
    int64_t selected_before(int64_t row) const; // how many of them
};

namespace generic {
void list_second(Synthesis& job);
void multiply_cross(Synthesis& job);
void multiply_bases(Synthesis& job);
}
#if defined(__x86_64__)
namespace avx2 {
void list_second(Synthesis& job);
void multiply_cross(Synthesis& job);
void multiply_bases(Synthesis& job);
}
namespace vnni {
void list_second(Synthesis& job);
void multiply_cross(Synthesis& job);
void multiply_bases(Synthesis& job);
}
#endif

} // namespace lexico

// What layout.inl is given: see lexico_codec/kernels/layout/rows.py.
#pragma once

#include <atomic>
#include <cstdint>

#include "lexico.h"

namespace lexico {

constexpr int64_t kBlockTokens = 32; // of the entropy coder
constexpr int64_t kMostChunk = 256;  // tokens of a component that are scaled at a time

struct Turning {
    const float *cos, *sin; // [tokens, pairs]
    int64_t pairs;          // 0: not turned
    bool interleaved;       // pair i is (2 i, 2 i + 1), else (i, i + pairs)
};

struct Laying { // lexico_gather, lexico_scatter
    int64_t tables, tokens, heads, m;
    int kind, row_kind; // of the memory and of the rows
    Memory memory;      // keys' tables before values'
    void* rows;         // [tables, tokens, heads * m]
    const float* means; // [tables, heads * m]
    Turning turning;    // of keys
    int64_t chunk;      // tokens that a thread takes
    std::atomic<int64_t> next{0};

    int64_t chunks() const { return (tokens + chunk - 1) / chunk; }
};
bool sound(const Laying& job);

struct Arranging { // lexico_arrange, lexico_entropy_arrange
    int64_t components, tokens, count; // count: components that were decoded
    const float* values;               // [sparsity + count, tokens], coefficients first
    const float* scales;               // [tokens]
    int64_t sparsity, width, atom_count;
    const int32_t* indices; // [sparsity, tokens]
    const float* atoms;     // [width, atom_count]
    float coefficient_step;
    const int32_t* places;  // [components]
    int kind;
    void* out; // [rows, tokens]
    int64_t rows = 0;
    float* coefficients = nullptr; // [sparsity, tokens] that lexico_entropy_arrange has decoded
    int32_t* taken = nullptr; // [blocks] places of `out`, [blocks, rows, 32] there, that are taken
    int32_t* where = nullptr; // [blocks, rows] a row's place, from 1 on; 0: its values are 0
    std::atomic<int64_t> next{0};
};

// Rows first..end of what was decoded, of tokens from..to of a block: `stride` from row to row.
using ArrangeRows = void (*)(const Arranging& job, const float* values, int64_t stride,
                             int64_t first, int64_t end, int64_t block, int64_t from, int64_t to);

namespace generic {
void gather(Laying& job);
void scatter(Laying& job);
void arrange(Arranging& job);
void arrange_rows(const Arranging& job, const float* values, int64_t stride, int64_t first,
                  int64_t end, int64_t block, int64_t from, int64_t to);
}
#if defined(__x86_64__)
namespace avx2 {
void gather(Laying& job);
void scatter(Laying& job);
void arrange(Arranging& job);
void arrange_rows(const Arranging& job, const float* values, int64_t stride, int64_t first,
                  int64_t end, int64_t block, int64_t from, int64_t to);
}
namespace vnni {
void gather(Laying& job);
void scatter(Laying& job);
void arrange(Arranging& job);
void arrange_rows(const Arranging& job, const float* values, int64_t stride, int64_t first,
                  int64_t end, int64_t block, int64_t from, int64_t to);
}
#endif

} // namespace lexico

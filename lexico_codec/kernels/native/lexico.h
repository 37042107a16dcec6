// What the translation units of liblexico share: the job, the packed table, the instruction sets.
//
// One binary serves every machine: pursue.inl is compiled once per instruction set, each time in
// its own namespace and translation unit, and omp.cpp picks one at run time. The ABI is plain C,
// so that the library depends on neither Python's nor torch's.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#define LEXICO_EXPORT extern "C" __attribute__((visibility("default")))

namespace lexico {

// Also the return codes of the C functions; compiled.py has the same table.
enum Status : int {
    kOk = 0,
    kNoMemory = 1,
    kNonFinite = 2,
    kBadIndex = 3,
    kUnsupported = 4,
    kBadArgument = 5,
    kBadLevel = 6, // an integer that cannot be coded
    kDamaged = 7,  // a stream that does not end where it should
};

enum Isa : int { kGeneric = 0, kAvx2 = 1, kVnni = 2, kAmx = 3 };

constexpr int64_t kBlock = 4;       // atoms that share a quantisation step and a stored maximum
constexpr int64_t kPadAtoms = 16;   // height of an AMX tile
constexpr int64_t kPadValues = 64;  // bytes of an AMX tile's row
constexpr int64_t kMostValues = 65536; // of a vector: sums of int8 products fit an int32
constexpr int64_t kMostHead = 1024; // components of a vector that lie apart, or are turned
constexpr float kDependent = 1e-5f; // least ||q||^2 of a new direction, as in naive.py
constexpr float kCoded = 2e-6f;     // relative residual that is rounding only, as in naive.py

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// One dictionary in int8: rows of `stride` bytes, d ~ step[j / 4] * codes[j], and what the error
// bound of quantised.inl needs. Views into caller-owned memory.
struct PackedTable {
    int64_t atoms, stride;
    float* norm;    // [1] greatest ||step * codes||
    int8_t* codes;  // [padded, stride], zero padded both ways
    float* step;    // [padded / 4]
    float* error;   // [padded / 4] greatest ||d - step * codes|| of the block
    int32_t* shift; // [padded] -128 * sum(codes): what a residual stored as q + 128 adds

    int64_t padded() const { return round_up(atoms, kPadAtoms); }

    static PackedTable view(uint8_t* base, int64_t atoms, int64_t m) {
        PackedTable t;
        t.atoms = atoms;
        t.stride = round_up(m, kPadValues);
        const int64_t padded = t.padded();
        t.norm = reinterpret_cast<float*>(base), base += 64;
        t.codes = reinterpret_cast<int8_t*>(base), base += padded * t.stride;
        t.step = reinterpret_cast<float*>(base), base += round_up(padded, 64);
        t.error = reinterpret_cast<float*>(base), base += round_up(padded, 64);
        t.shift = reinterpret_cast<int32_t*>(base);
        return t;
    }

    static int64_t bytes(int64_t atoms, int64_t m) {
        const int64_t padded = round_up(atoms, kPadAtoms);
        return 64 + padded * round_up(m, kPadValues) + 2 * round_up(padded, 64) +
               round_up(4 * padded, 64);
    }
};

// A call for T tables of `rows` vectors each. Threads take (table, chunk) items off `next` until
// none is left or one of them sets `status`.
struct Call {
    const float* table; // [starts[T], m]
    const int64_t* starts;
    int64_t tables, rows, m, s, chunk;
    std::atomic<int64_t> next{0};
    std::atomic<int> status{kOk};

    int64_t chunks() const { return (rows + chunk - 1) / chunk; }
    void fail(int code) {
        int expected = kOk;
        status.compare_exchange_strong(expected, code);
    }
};

struct Job : Call { // lexico_omp
    const float* vectors; // [T, rows, m]
    uint8_t* packed;
    float tolerance;
    int32_t* indices;    // [T * rows, s]
    float* coefficients; // [T * rows, s]
    int32_t* counts;     // [T * rows]
};

struct Decoding : Call { // lexico_reconstruct
    const int32_t* indices;    // [T * rows, s]
    const float* coefficients; // [T * rows, s]
    const int32_t* counts;     // [T * rows]
    float* out;                // [T, rows, m]
};

enum Kind : int { kFloat32 = 0, kFloat16 = 1, kBfloat16 = 2 };

// The caller's memory of T tables, strides in values: see lexico_codec/kernels/memory.py.
struct Memory {
    void* const* parts;     // [T] the first value of each table
    const int64_t* strides; // of blocks, tokens, heads and components
    int64_t step;           // from the strides of a table to those of the next: 4, or 0
    const int64_t* blocks;  // block of each run of block_tokens slots, or null for one run
    int64_t block_tokens, first_slot;

    // Of a token's first value, from that of the table.
    int64_t offset(int64_t table, int64_t token) const {
        const int64_t *stride = strides + step * table, slot = first_slot + token;
        if (!blocks) return slot * stride[1];
        return blocks[slot / block_tokens] * stride[0] + slot % block_tokens * stride[1];
    }
    int64_t head_stride(int64_t table) const { return strides[step * table + 2]; }
    int64_t stride(int64_t table) const { return strides[step * table + 3]; } // of components

    // Whether a vector can be read and written at all.
    bool takes(int64_t tables, int64_t m) const {
        if (first_slot < 0 || (blocks && block_tokens < 1)) return false;
        for (int64_t t = 0; m > kMostHead && t < tables; ++t)
            if (stride(t) != 1) return false;
        return true;
    }
};

struct Restoring : Call { // lexico_restore
    const int16_t* indices;  // [T * rows, s]
    const uint8_t* bits;     // [T * rows, s] E4M3
    const int8_t* exponents; // [T * rows]
    const uint8_t* counts;   // [T * rows]
    const float* e4m3;       // [256] what bits stand for
    Memory memory;
    int64_t heads;
    int kind; // of the memory
};

bool supported(int isa);
bool amx_permitted(); // asks the kernel for the tile registers, once

namespace generic {
void pursue(Job& job);
void reconstruct(Decoding& job);
void restore(Restoring& job);
}
#if defined(__x86_64__)
namespace avx2 {
void pursue(Job& job);
void reconstruct(Decoding& job);
void restore(Restoring& job);
}
namespace vnni {
void pursue(Job& job);
void reconstruct(Decoding& job);
void restore(Restoring& job);
}
namespace amx {
void pursue(Job& job);
}
#endif

} // namespace lexico

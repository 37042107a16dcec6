// The C functions of encoding: which instruction set, packing, and threads.
#include <math.h>

#include "lexico.h"
#include "threads.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace lexico {
namespace {

constexpr int64_t kMostChunk = 512;  // rows of one item of work
constexpr int64_t kLeastChunk = 32;  // two groups of sixteen
constexpr double kEncodeWork = 3e7;  // multiply-adds that are worth a thread of their own
constexpr double kDecodeWork = 1e6;

// Sizes that fit one another, and chunks of rows: four items of work a thread, if there are rows.
bool prepare(Call& call, int64_t threads, const float* table, const int64_t* starts, int64_t tables,
             int64_t rows, int64_t m, int64_t s) {
    if (m < 1 || s < 0 || tables < 0 || rows < 0 || threads < 1) return false;
    for (int64_t t = 0; t < tables; ++t) {
        const int64_t atoms = starts[t + 1] - starts[t];
        if (starts[t] < 0 || atoms < 1 || atoms > 65536) return false;
    }
    call.table = table, call.starts = starts;
    call.tables = tables, call.rows = rows, call.m = m, call.s = s;
    const int64_t fair = round_up(tables * rows / (4 * threads) + 1, kLeastChunk);
    call.chunk = fair < kMostChunk ? fair : kMostChunk;
    return true;
}

bool pack_table(const float* table, int64_t atoms, int64_t m, uint8_t* base) {
    const PackedTable t = PackedTable::view(base, atoms, m);
    __builtin_memset(base, 0, size_t(PackedTable::bytes(atoms, m)));
    double norm = 0;
    for (int64_t block = 0; block * kBlock < atoms; ++block) {
        const int64_t from = block * kBlock, to = from + kBlock < atoms ? from + kBlock : atoms;
        float top = 0;
        for (int64_t i = from * m; i < to * m; ++i) {
            if (!isfinite(table[i])) return false;
            top = fmaxf(top, fabsf(table[i]));
        }
        const float step = top > 0 ? top / 127 : 1;
        double error = 0;
        for (int64_t j = from; j < to; ++j) {
            double miss = 0, square = 0;
            int32_t sum = 0;
            for (int64_t i = 0; i < m; ++i) {
                const float d = table[j * m + i];
                const int32_t q = int32_t(lrintf(d / step));
                const double near = double(step) * q;
                t.codes[j * t.stride + i] = int8_t(q);
                miss += (d - near) * (d - near), square += near * near, sum += q;
            }
            t.shift[j] = -128 * sum;
            error = fmax(error, sqrt(miss)), norm = fmax(norm, sqrt(square));
        }
        t.step[block] = step;
        t.error[block] = float(error * 1.0001);
    }
    t.norm[0] = float(norm * 1.0001);
    return true;
}

} // namespace

bool supported(int isa) {
#if defined(__x86_64__)
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("f16c");
    const bool vnni = avx2 && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512vnni");
    if (isa == kAmx) return vnni && amx_permitted();
    if (isa == kVnni) return vnni;
    if (isa == kAvx2) return avx2;
#endif
    return isa == kGeneric;
}

bool amx_permitted() {
#if defined(__x86_64__) && defined(__linux__)
    // GCC 12 knows no CPU feature name for AMX: CPUID leaf 7, EDX bits 24 (tile) and 25 (int8).
    static const bool permitted = [] {
        unsigned a = 7, b, c = 0, d;
        asm volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
        constexpr unsigned long kRequestPermission = 0x1023, kTileData = 18;
        return (d >> 24 & 3) == 3 && !syscall(SYS_arch_prctl, kRequestPermission, kTileData);
    }();
    return permitted;
#else
    return false;
#endif
}

} // namespace lexico

using namespace lexico;

LEXICO_EXPORT int lexico_abi() { return 9; }

LEXICO_EXPORT int lexico_supported(int isa) { return supported(isa); }

LEXICO_EXPORT int64_t lexico_packed_bytes(int64_t m, int64_t tables, const int64_t* starts) {
    int64_t bytes = 0;
    for (int64_t t = 0; t < tables; ++t) bytes += PackedTable::bytes(starts[t + 1] - starts[t], m);
    return bytes;
}

// packed must be aligned to 64 bytes for speed, not for correctness.
LEXICO_EXPORT int lexico_pack(int64_t threads, const float* table, int64_t m, int64_t tables,
                              const int64_t* starts, uint8_t* packed) {
    std::atomic<int64_t> next{0};
    std::atomic<int> status{kOk};
    spread(threads < tables ? threads : tables, [&] {
        for (int64_t t; (t = next.fetch_add(1)) < tables;) {
            uint8_t* base = packed + lexico_packed_bytes(m, t, starts);
            if (!pack_table(table + starts[t] * m, starts[t + 1] - starts[t], m, base))
                status = kNonFinite;
        }
    });
    return status;
}

LEXICO_EXPORT int lexico_omp(int isa, int64_t threads, const float* vectors, const float* table,
                             const int64_t* starts, uint8_t* packed, int64_t tables, int64_t rows,
                             int64_t m, int64_t s, float tolerance, int32_t* indices,
                             float* coefficients, int32_t* counts) {
    if (!supported(isa)) return kUnsupported;
    Job job;
    if (s < 1 || m > kMostValues) return kBadArgument;
    if (!prepare(job, threads, table, starts, tables, rows, m, s)) return kBadArgument;
    job.vectors = vectors, job.packed = packed, job.tolerance = tolerance;
    job.indices = indices, job.coefficients = coefficients, job.counts = counts;
    const int64_t items = tables * job.chunks();
    if (!items) return kOk;
    const double work = double(rows) * double(starts[tables]) * double(m * s);
    spread(useful(threads, items, work, kEncodeWork), [&job, isa] {
#if defined(__x86_64__)
        if (isa == kAmx) return amx::pursue(job);
        if (isa == kVnni) return vnni::pursue(job);
        if (isa == kAvx2) return avx2::pursue(job);
#endif
        generic::pursue(job);
    });
    return job.status;
}

LEXICO_EXPORT int lexico_reconstruct(int isa, int64_t threads, const int32_t* indices,
                                     const float* coefficients, const int32_t* counts,
                                     const float* table, const int64_t* starts, int64_t tables,
                                     int64_t rows, int64_t m, int64_t s, float* out) {
    if (!supported(isa)) return kUnsupported;
    Decoding job;
    if (!prepare(job, threads, table, starts, tables, rows, m, s)) return kBadArgument;
    job.indices = indices, job.coefficients = coefficients, job.counts = counts, job.out = out;
    const int64_t items = tables * job.chunks();
    if (!items) return kOk;
    const double work = double(rows) * double(tables) * double(m * s);
    spread(useful(threads, items, work, kDecodeWork), [&job, isa] {
#if defined(__x86_64__)
        if (isa >= kVnni) return vnni::reconstruct(job);
        if (isa == kAvx2) return avx2::reconstruct(job);
#endif
        generic::reconstruct(job);
    });
    return job.status;
}

// Bits of E4M3 (bias 7, no infinities, 0x7f and 0xff no numbers) to floats.
static const float* e4m3_values() {
    static const struct Values {
        float of[256];
        Values() {
            for (int b = 0; b < 256; ++b) {
                const int exponent = b >> 3 & 15, fraction = b & 7;
                const float size = exponent ? ldexpf(8 + fraction, exponent - 10)
                                            : ldexpf(fraction, -9);
                of[b] = (b & 0x7f) == 0x7f ? NAN : b & 0x80 ? -size : size;
            }
        }
    } values;
    return values.of;
}

LEXICO_EXPORT int lexico_restore(int isa, int64_t threads, const int16_t* indices,
                                 const uint8_t* bits, const int8_t* exponents,
                                 const uint8_t* counts, const float* table, const int64_t* starts,
                                 int64_t tables, int64_t tokens, int64_t heads, int64_t m,
                                 int64_t s, int kind, void* const* parts, const int64_t* strides,
                                 int64_t step, const int64_t* blocks, int64_t block_tokens,
                                 int64_t first_slot) {
    if (!supported(isa)) return kUnsupported;
    Restoring job;
    if (tokens < 0 || heads < 0 || s > 255 || kind < kFloat32 || kind > kBfloat16)
        return kBadArgument;
    job.memory = {parts, strides, step, blocks, block_tokens, first_slot};
    if (!job.memory.takes(tables, m)) return kBadArgument;
    const int64_t rows = tokens * heads;
    if (!prepare(job, threads, table, starts, tables, rows, m, s)) return kBadArgument;
    job.indices = indices, job.bits = bits, job.exponents = exponents, job.counts = counts;
    job.e4m3 = e4m3_values(), job.kind = kind, job.heads = heads;
    const int64_t items = tables * job.chunks();
    if (!items) return kOk;
    const double work = double(rows) * double(tables) * double(m * s);
    spread(useful(threads, items, work, kDecodeWork), [&job, isa] {
#if defined(__x86_64__)
        if (isa >= kVnni) return vnni::restore(job);
        if (isa == kAvx2) return avx2::restore(job);
#endif
        generic::restore(job);
    });
    return job.status;
}

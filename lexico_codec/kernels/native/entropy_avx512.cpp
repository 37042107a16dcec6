// Entropy decoding on AVX-512: a block's lanes are two registers, tables are gathered from, and words
// are expanded into the lanes that want one. Blocks are taken side by side, because a component of
// one block waits for the one before, and because their rows lie side by side.
#if defined(__x86_64__)
#include <immintrin.h>

#include <new>

#include "entropy.h"

#pragma GCC target("avx2,bmi,bmi2,popcnt,avx512f,avx512bw,avx512dq,avx512vl")

namespace lexico::vnni {
namespace {

typedef __m512i I;
constexpr int kHalves = kLanes / 16;

I all(int32_t value) { return _mm512_set1_epi32(value); }

struct Block {
    I state[kHalves], offset[kHalves];
    __mmask16 real[kHalves];
    Words words;
    int32_t least, most;
    int64_t first; // token

    Block(const Unpacking& job, int64_t block) : first(block * kLanes) {
        const int count = job.classes.lanes(block);
        const Offsets offsets(job.classes, block);
        least = offsets.least, most = offsets.most;
        const uint8_t* from = job.body + job.begins[block];
        for (int i = 0; i < kHalves; ++i) {
            real[i] = __mmask16(_bzhi_u32(0xffff, unsigned(count < 16 * i ? 0 : count - 16 * i)));
            state[i] = _mm512_maskz_loadu_epi32(real[i], from + 64 * i);
            offset[i] = _mm512_loadu_si512(offsets.of + 16 * i);
        }
        const int64_t bytes = job.begins[block + 1] - job.begins[block];
        words = {from + 4 * count, 0, bytes / 2 - 2 * count};
    }

    bool sound() const {
        bool same = words.at == words.count;
        for (int i = 0; i < kHalves; ++i)
            same &= !_mm512_mask_cmpneq_epi32_mask(real[i], state[i], all(int32_t(kLeast)));
        return same;
    }
};

// The lanes of `which` that are below the least state take a word each, in order.
inline I renormalised(I x, __mmask16 which, Words& words) {
    const __mmask16 few = _mm512_mask_cmplt_epu32_mask(which, x, all(int32_t(kLeast)));
    const uint8_t* from = words.first + 2 * words.at;
    __m256i next;
    if (__builtin_expect(words.left() >= 16, 1))
        next = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    else // nothing past the end is touched
        next = _mm256_maskz_loadu_epi16(
            __mmask16(_bzhi_u32(0xffff, unsigned(words.left() > 0 ? words.left() : 0))), from);
    words.at += _mm_popcnt_u32(few);
    const I word = _mm512_maskz_expand_epi32(few, _mm512_cvtepu16_epi32(next));
    return _mm512_mask_or_epi32(x, few, _mm512_slli_epi32(x, 16), word);
}

// One component of a block. Even: all lanes have one class, and it is not negative.
template <bool Even> inline void unpack_component(const Unpacking& job, const Output& output,
                                                  Block& b, int32_t base, int64_t to) {
    const Classes& classes = job.classes;
    const int32_t top = classes.clipped(base + b.most);
    I of[kHalves], symbol[kHalves], low[kHalves], k[kHalves];
    __mmask16 live[kHalves];
    uint32_t escaped = 0;
    for (int i = 0; i < kHalves; ++i) {
        const I x = b.state[i];
        I slot = _mm512_and_si512(x, all(4095));
        if (Even) {
            live[i] = b.real[i];
            slot = _mm512_mask_i32gather_epi32(all(kMiddle), live[i], slot,
                                               job.slots + (int64_t(top) << kSlotBits), 4);
        } else {
            of[i] = _mm512_min_epi32(_mm512_add_epi32(all(base), b.offset[i]),
                                     all(classes.count - 1));
            live[i] = _mm512_mask_cmpge_epi32_mask(b.real[i], of[i], _mm512_setzero_si512());
            slot = _mm512_or_si512(slot, _mm512_slli_epi32(of[i], kSlotBits));
            slot = _mm512_mask_i32gather_epi32(all(kMiddle), live[i], slot, job.slots, 4);
        }
        symbol[i] = _mm512_and_si512(slot, all(31));
        const I f = _mm512_and_si512(_mm512_srli_epi32(slot, 5), all(4095));
        const I part = _mm512_mullo_epi32(f, _mm512_srli_epi32(x, kSlotBits));
        const I next = _mm512_mask_add_epi32(x, live[i], part, _mm512_srli_epi32(slot, 17));
        b.state[i] = renormalised(next, live[i], b.words);
        escaped |= uint32_t(_mm512_cmpeq_epi32_mask(symbol[i], all(kEscape))) << 16 * i;
    }
    const bool raw = classes.raw(Even ? top : classes.clipped(base + b.least), top);
    if (__builtin_expect(!raw && !escaped && output.out, 1)) {
        for (int i = 0; i < kHalves; ++i) {
            __m512 value;
            if (Even) {
                const float* values = job.values + int64_t(top) * kSymbols;
                value = _mm512_permutex2var_ps(_mm512_loadu_ps(values), symbol[i],
                                               _mm512_loadu_ps(values + 16));
            } else {
                const I at = _mm512_or_si512(_mm512_slli_epi32(of[i], 5), symbol[i]);
                value = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), live[i], at, job.values, 4);
            }
            _mm512_mask_storeu_ps(output.out + to + 16 * i, b.real[i], value);
        }
        return;
    }
    for (int i = 0; i < kHalves; ++i) low[i] = k[i] = _mm512_setzero_si512();
    if (raw) {
        for (int i = 0; i < kHalves; ++i) {
            if (Even) {
                k[i] = all(classes.shifts[top]);
            } else {
                alignas(64) int32_t each[16];
                _mm512_store_si512(each, of[i]);
                for (int32_t& e : each) e = e < 0 ? 0 : classes.shifts[e];
                k[i] = _mm512_load_si512(each);
            }
            const __mmask16 some = _mm512_mask_test_epi32_mask(live[i], k[i], k[i]);
            low[i] = _mm512_andnot_si512(_mm512_sllv_epi32(all(-1), k[i]), b.state[i]);
            b.state[i] = renormalised(_mm512_mask_srlv_epi32(b.state[i], some, b.state[i], k[i]),
                                      some, b.words);
        }
    }
    alignas(64) int32_t high[kLanes];
    for (int i = 0; i < kHalves; ++i)
        _mm512_store_si512(high + 16 * i, _mm512_sub_epi32(symbol[i], all(kMiddle)));
    if (escaped) b.words.take_escapes(escaped, high);
    for (int i = 0; i < kHalves; ++i) {
        const I q = _mm512_or_si512(_mm512_sllv_epi32(_mm512_load_si512(high + 16 * i), k[i]),
                                    low[i]);
        if (output.levels) {
            _mm512_mask_storeu_epi32(output.levels + to + 16 * i, b.real[i], q);
            continue;
        }
        const I own = _mm512_add_epi32(q, all(kMiddle));
        __mmask16 named = _mm512_mask_cmple_epu32_mask(live[i], own, all(2 * kMiddle));
        named = _mm512_mask_testn_epi32_mask(named, k[i], k[i]);
        const I at = _mm512_or_si512(_mm512_slli_epi32(Even ? all(top) : of[i], 5), own);
        _mm512_mask_storeu_ps(output.out + to + 16 * i, b.real[i],
                              _mm512_mask_i32gather_ps(_mm512_cvtepi32_ps(q), named, at,
                                                       job.values, 4));
    }
}

void unpack_either(const Unpacking& job, const Output& output, Block& b, int64_t c) {
    const int32_t base = job.classes.of[c];
    const int64_t to = output.at(c, b.first);
    if (base + b.most < 0) {
        void* row = output.out ? static_cast<void*>(output.out + to) : output.levels + to;
        for (int half = 0; half < kHalves; ++half)
            _mm512_mask_storeu_epi32(static_cast<uint8_t*>(row) + 64 * half, b.real[half],
                                     _mm512_setzero_si512());
    } else if (b.least == b.most) {
        unpack_component<true>(job, output, b, base, to);
    } else {
        unpack_component<false>(job, output, b, base, to);
    }
}

// Blocks first..last, at most kTogether.
void unpack_blocks(Unpacking& job, int64_t first, int64_t last) {
    alignas(Block) unsigned char room[kTogether * sizeof(Block)];
    Block* blocks = reinterpret_cast<Block*>(room);
    const int count = int(last - first);
    for (int i = 0; i < count; ++i) new (blocks + i) Block(job, first + i);
    for (Share share(job, first, last); share.next();)
        for (int64_t c = share.begin; c < share.end; ++c)
            for (int i = 0; i < count; ++i) unpack_either(job, share.output, blocks[i], c);
    for (int i = 0; i < count; ++i)
        if (!blocks[i].sound()) job.status = kDamaged;
}

} // namespace

void unpack(Unpacking& job) {
    const int64_t blocks = job.classes.blocks();
    for (int64_t group; (group = job.next.fetch_add(1)) * job.together < blocks;) {
        const int64_t last = (group + 1) * job.together;
        unpack_blocks(job, group * job.together, last < blocks ? last : blocks);
    }
}

} // namespace lexico::vnni
#endif

// Entropy decoding on AVX2: a block's lanes are four registers. Most values are -1, 0 or 1, whose
// slots lie side by side: three comparisons say which, without a look into a table. What lanes know
// of these stays the same from component to component until the class changes. Other values are
// gathered from the tables. A lane whose class is negative has one symbol, 0, that takes all slots:
// its state stays as it is.
#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include <new>

#include "entropy.h"

#pragma GCC target("avx2,bmi,bmi2,popcnt")

namespace lexico::avx2 {
namespace {

typedef __m256i I;
constexpr int kLane = 8; // lanes of a register
constexpr int kParts = kLanes / kLane;
constexpr int64_t kTail = 2 * kLanes + kLane; // words that a component may look at, but for escapes

I all(int32_t value) { return _mm256_set1_epi32(value); }
I load(const int32_t* from) { return _mm256_load_si256(reinterpret_cast<const I*>(from)); }
void store(int32_t* to, I value) { _mm256_store_si256(reinterpret_cast<I*>(to), value); }
I choose(I which, I a, I b) { return _mm256_blendv_epi8(b, a, which); } // a where it is all ones
int bits(I which) { return _mm256_movemask_ps(_mm256_castsi256_ps(which)); }

// Where the words go that a mask's lanes take in turn: eight numbers of a byte for each mask.
struct Places {
    uint64_t of[256];
    constexpr Places() : of() {
        for (int mask = 0; mask < 256; ++mask)
            for (int lane = 0, next = 0; lane < kLane; ++lane)
                if (mask >> lane & 1) of[mask] |= uint64_t(next++) << 8 * lane;
    }
};
constexpr Places kPlaces;

// What the lanes of a block know of their classes.
struct alignas(32) Known {
    int32_t of[kLanes];                           // 0 where it is negative
    int32_t live[kLanes];                         // all ones where it is not
    int32_t first[3][kLanes], frequency[3][kLanes]; // of -1, 0 and 1
    int32_t end[kLanes];                          // of the slots of 1
    int32_t one[kLanes];                          // what 1 stands for, a float's bits
    int32_t base = INT32_MIN;
    bool near = false; // most symbols are one of the three
    bool raw = false;  // some lane has raw bits
    int32_t shift[kLanes]; // how many
};

struct Block {
    I state[kParts];
    Known known;
    Offsets offsets;
    Words words;
    int64_t first; // token
    int count;
    uint8_t tail[2 * (2 * kTail + kLanes)];

    Block(const Unpacking& job, int64_t block)
        : offsets(job.classes, block), first(block * kLanes), count(job.classes.lanes(block)),
          tail{} {
        const uint8_t* from = job.body + job.begins[block];
        alignas(32) int32_t states[kLanes];
        for (int lane = 0; lane < kLanes; ++lane)
            states[lane] = int32_t(lane < count ? read_state(from + 4 * lane) : kLeast);
        for (int i = 0; i < kParts; ++i) state[i] = load(states + kLane * i);
        const int64_t bytes = job.begins[block + 1] - job.begins[block];
        words = {from + 4 * count, 0, bytes / 2 - 2 * count};
    }

    // Near the end of the stream its rest lies before zeros, so that all lanes can look for words.
    // False: more words were taken than there are.
    bool reach() {
        if (__builtin_expect(words.left() >= kTail, 1)) return true;
        if (words.left() < 0) return false;
        if (words.first == tail) return true;
        const int64_t left = words.left();
        memcpy(tail, words.first + 2 * words.at, size_t(2 * left));
        words = {tail, 0, left};
        return true;
    }

    bool sound() const {
        I same = all(-1);
        for (int i = 0; i < kParts; ++i)
            same = _mm256_and_si256(same, _mm256_cmpeq_epi32(state[i], all(int32_t(kLeast))));
        return words.at == words.count && bits(same) == 255;
    }
};

void know(const Unpacking& job, Block& b, int32_t base) {
    Known& known = b.known;
    const Classes& classes = job.classes;
    int64_t three = 0, lanes = 0;
    known.base = base;
    known.raw = classes.raw(classes.clipped(base + b.offsets.least),
                            classes.clipped(base + b.offsets.most));
    for (int lane = 0; lane < kLanes; ++lane) {
        const int32_t e = lane < b.count ? classes.clipped(base + b.offsets.of[lane]) : -1;
        known.of[lane] = e < 0 ? 0 : e;
        known.live[lane] = e < 0 ? 0 : -1;
        known.shift[lane] = e < 0 ? 0 : classes.shifts[e];
        const uint16_t* starts = job.starts + known.of[lane] * (kSymbols + 1) + kMiddle - 1;
        for (int i = 0; i < 3; ++i) {
            known.first[i][lane] = e < 0 ? (i == 2) << kSlotBits : starts[i];
            known.frequency[i][lane] = e < 0 ? (i == 1) << kSlotBits : starts[i + 1] - starts[i];
        }
        known.end[lane] = e < 0 ? 1 << kSlotBits : starts[3];
        memcpy(known.one + lane, job.values + known.of[lane] * kSymbols + kMiddle + 1, 4);
        three += e < 0 ? 0 : starts[3] - starts[0];
        lanes += e >= 0;
    }
    known.near = !known.raw && 4 * three >= 3 * (lanes << kSlotBits);
}

// The lanes of `which` that are below the least state take a word each, in order.
inline I renormalised(I x, I which, Words& words) {
    const I few = _mm256_and_si256(
        which, _mm256_cmpeq_epi32(_mm256_srli_epi32(x, 16), _mm256_setzero_si256()));
    const int mask = bits(few);
    const I next = _mm256_cvtepu16_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(words.first + 2 * words.at)));
    const I places = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(int64_t(kPlaces.of[mask])));
    words.at += _mm_popcnt_u32(unsigned(mask));
    const I word = _mm256_permutevar8x32_epi32(next, places);
    return choose(few, _mm256_or_si256(_mm256_slli_epi32(x, 16), word), x);
}

// One component of a block. Near: it has no raw bits, and most values are -1, 0 or 1.
template <bool Near> inline void unpack_component(const Unpacking& job, const Output& output,
                                                  Block& b, int64_t to) {
    const Known& known = b.known;
    alignas(32) int32_t symbols[kLanes];
    I value[kParts];
    uint32_t escaped = 0;
    for (int i = 0; i < kParts; ++i) {
        const int at = kLane * i;
        const I x = b.state[i], slot = _mm256_and_si256(x, all(4095));
        const I over = _mm256_srli_epi32(x, kSlotBits), live = load(known.live + at);
        if (Near) {
            const I zero = load(known.first[1] + at), above = load(known.first[2] + at);
            const I below = _mm256_cmpgt_epi32(zero, slot);
            const I rest = _mm256_cmpgt_epi32(above, slot); // -1 or 0
            const I outside = _mm256_or_si256(
                _mm256_cmpgt_epi32(load(known.first[0] + at), slot),
                _mm256_andnot_si256(_mm256_cmpgt_epi32(load(known.end + at), slot), all(-1)));
            if (__builtin_expect(_mm256_testz_si256(outside, outside), 1)) {
                const I first =
                    choose(rest, choose(below, load(known.first[0] + at), zero), above);
                const I f = choose(rest,
                                   choose(below, load(known.frequency[0] + at),
                                          load(known.frequency[1] + at)),
                                   load(known.frequency[2] + at));
                b.state[i] = renormalised(
                    _mm256_add_epi32(_mm256_mullo_epi32(f, over), _mm256_sub_epi32(slot, first)),
                    live, b.words);
                // below: -1, 0 of none; rest alone: 0; neither: 1.
                const I some = _mm256_or_si256(below, _mm256_xor_si256(rest, all(-1)));
                store(symbols + at, _mm256_add_epi32(_mm256_add_epi32(rest, below),
                                                     all(kMiddle + 1)));
                const I one = _mm256_xor_si256(load(known.one + at),
                                               _mm256_slli_epi32(below, 31));
                value[i] = _mm256_and_si256(some, one);
                continue;
            }
        }
        const I of = load(known.of + at);
        const I entry = _mm256_i32gather_epi32(
            reinterpret_cast<const int*>(job.slots),
            _mm256_or_si256(slot, _mm256_slli_epi32(of, kSlotBits)), 4);
        const I symbol = choose(live, _mm256_and_si256(entry, all(31)), all(kMiddle));
        const I f = _mm256_and_si256(_mm256_srli_epi32(entry, 5), all(4095));
        const I part = _mm256_mullo_epi32(f, over);
        const I next = _mm256_add_epi32(part, _mm256_srli_epi32(entry, 17));
        b.state[i] = renormalised(choose(live, next, x), live, b.words);
        escaped |= uint32_t(bits(_mm256_cmpeq_epi32(symbol, all(kEscape)))) << at;
        store(symbols + at, symbol);
        value[i] = _mm256_i32gather_epi32(
            reinterpret_cast<const int*>(job.values),
            _mm256_or_si256(symbol, _mm256_slli_epi32(of, 5)), 4);
    }
    if (__builtin_expect(output.out && !escaped && !known.raw && b.count == kLanes, 1)) {
        for (int i = 0; i < kParts; ++i)
            _mm256_storeu_si256(reinterpret_cast<I*>(output.out + to + kLane * i), value[i]);
        return;
    }
    alignas(32) int32_t low[kLanes] = {};
    for (int i = 0; i < kParts; ++i) {
        const int at = kLane * i;
        store(symbols + at, _mm256_sub_epi32(load(symbols + at), all(kMiddle)));
        if (!known.raw) continue;
        const I k = load(known.shift + at);
        store(low + at, _mm256_andnot_si256(_mm256_sllv_epi32(all(-1), k), b.state[i]));
        b.state[i] = renormalised(_mm256_srlv_epi32(b.state[i], k),
                                  _mm256_cmpgt_epi32(k, _mm256_setzero_si256()), b.words);
    }
    if (escaped) b.words.take_escapes(escaped, symbols);
    for (int lane = 0; lane < b.count; ++lane) {
        const int k = known.shift[lane];
        const int32_t q = int32_t(uint32_t(symbols[lane]) << k) | low[lane];
        if (output.levels) {
            output.levels[to + lane] = q;
        } else {
            const bool own = !k && uint32_t(q) + kMiddle <= 2 * kMiddle;
            output.out[to + lane] =
                own ? job.values[known.of[lane] * kSymbols + kMiddle + q] : float(q);
        }
    }
}

// A few components of a block. False: its stream is damaged.
bool unpack_some(const Unpacking& job, Block& b, const Share& share) {
    const Classes& classes = job.classes;
    const Output& output = share.output;
    for (int64_t c = share.begin; c < share.end; ++c) {
        const int32_t base = classes.of[c];
        const int64_t to = output.at(c, b.first);
        if (base + b.offsets.most < 0) {
            void* row = output.out ? static_cast<void*>(output.out + to) : output.levels + to;
            memset(row, 0, size_t(4 * b.count));
            continue;
        }
        if (!b.reach()) return false;
        if (base != b.known.base) know(job, b, base);
        if (b.known.near)
            unpack_component<true>(job, output, b, to);
        else
            unpack_component<false>(job, output, b, to);
    }
    return true;
}

// Blocks first..last, at most kTogether, side by side.
void unpack_blocks(Unpacking& job, int64_t first, int64_t last) {
    alignas(Block) unsigned char room[kTogether * sizeof(Block)];
    Block* blocks = reinterpret_cast<Block*>(room);
    const int count = int(last - first);
    for (int i = 0; i < count; ++i) new (blocks + i) Block(job, first + i);
    for (Share share(job, first, last); share.next();)
        for (int i = 0; i < count; ++i)
            if (!unpack_some(job, blocks[i], share)) return void(job.status = kDamaged);
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

} // namespace lexico::avx2
#endif

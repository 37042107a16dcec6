// Entropy coding on any machine, and its C functions. AVX2 and AVX-512 have decoders of theirs.
#include "entropy.h"

#include <string.h>

#include <memory>
#include <new>
#include <vector>

#include "threads.h"

namespace lexico {
namespace {

constexpr double kDecodeWork = 1e5; // values that are worth a thread of their own
constexpr double kEncodeWork = 3e4;
constexpr int32_t kMostLevel = (1 << 30) - 1;
constexpr int64_t kMostWords = 4 * kLanes; // of a component in a block

// What coding a symbol takes: x / frequency is x * reciprocal >> 44, exactly, as x < frequency << 20.
struct Symbol {
    uint64_t reciprocal;
    uint32_t limit; // frequency << 20: from here on a word goes out first
    uint16_t rest, start; // rest: 4096 - frequency
};

struct Piece { // a block's stream
    std::unique_ptr<uint8_t[]> bytes;
    int64_t size = 0;
};

struct Packing { // lexico_entropy_encode
    Classes classes;
    const int32_t* levels; // [components, tokens]
    std::vector<Symbol> symbols; // [count, 32]
    std::vector<Piece> pieces;   // [blocks]
    std::atomic<int64_t> next{0};
    std::atomic<int> status{kOk};
};

// Writes words from the back, as the decoder will take them.
struct Backwards {
    uint16_t* first;

    void put(uint32_t word) { *--first = uint16_t(word); }
    void put_if(uint32_t word, bool wanted) { // writes always: there is room
        first[-1] = uint16_t(word);
        first -= wanted;
    }
};

struct Lanes {
    uint32_t state[kLanes];
    int32_t high[kLanes], low[kLanes], of[kLanes]; // of: the class
};

void put_escapes(const Lanes& lanes, uint32_t which, Backwards& words) {
    const auto zigzag = [&lanes](int lane) {
        return uint32_t(lanes.high[lane]) << 1 ^ uint32_t(lanes.high[lane] >> 31);
    };
    for (uint32_t rest = which; rest;) {
        const int lane = 31 - __builtin_clz(rest);
        rest ^= 1u << lane;
        if (zigzag(lane) > 0x7fff) words.put(zigzag(lane) >> 15);
    }
    while (which) {
        const int lane = 31 - __builtin_clz(which);
        which ^= 1u << lane;
        const uint32_t z = zigzag(lane);
        words.put((z & 0x7fff) | (z > 0x7fff ? 0x8000 : 0));
    }
}

// One component of a block, all lanes; false where a value cannot be coded.
bool pack_component(const Packing& job, const Offsets& offsets, int32_t base, const int32_t* q,
                    int count, Lanes& lanes, Backwards& words) {
    const Classes& classes = job.classes;
    if (base + offsets.most < 0) {
        int32_t any = 0;
        for (int lane = 0; lane < count; ++lane) any |= q[lane];
        return !any;
    }
    const int32_t top = classes.clipped(base + offsets.most);
    const bool raw = classes.raw(classes.clipped(base + offsets.least), top);
    uint32_t escaped = 0, bad = 0;
    for (int lane = 0; lane < count; ++lane) {
        const int32_t e = classes.clipped(base + offsets.of[lane]);
        const int k = e < 0 ? 0 : classes.shifts[e];
        lanes.of[lane] = e;
        lanes.high[lane] = q[lane] >> k;
        lanes.low[lane] = q[lane] & ((1 << k) - 1);
        bool outside = uint32_t(lanes.high[lane]) + kMiddle > 2 * kMiddle;
        if (!outside && e >= 0) // a symbol of no frequency
            outside = !job.symbols[size_t(e * kSymbols + kMiddle + lanes.high[lane])].limit;
        bad |= (e < 0 ? q[lane] != 0 : 0) | (q[lane] > kMostLevel) | (q[lane] < -kMostLevel);
        escaped |= uint32_t(outside) << lane;
    }
    if (bad) return false;
    if (escaped) put_escapes(lanes, escaped, words);
    if (raw) {
        for (int lane = count; lane--;) {
            const int32_t e = lanes.of[lane];
            const int k = e < 0 ? 0 : classes.shifts[e];
            if (!k) continue;
            uint32_t& x = lanes.state[lane];
            const bool full = x >> (32 - k);
            words.put_if(x, full);
            x = full ? x >> 16 : x;
            x = x << k | uint32_t(lanes.low[lane]);
        }
    }
    for (int lane = count; lane--;) {
        if (lanes.of[lane] < 0) continue;
        const int symbol = escaped >> lane & 1 ? kEscape : lanes.high[lane] + kMiddle;
        const Symbol& s = job.symbols[size_t(lanes.of[lane] * kSymbols + symbol)];
        uint32_t x = lanes.state[lane];
        const bool full = x >= s.limit;
        words.put_if(x, full);
        x = full ? x >> 16 : x;
        lanes.state[lane] = x + s.start + uint32_t(x * s.reciprocal >> 44) * s.rest;
    }
    return true;
}

void pack(Packing& job) {
    const Classes& classes = job.classes;
    const int64_t room = kMostWords * classes.components + 2 * kLanes + 1;
    const std::unique_ptr<uint16_t[]> scratch(new (std::nothrow) uint16_t[size_t(room)]);
    for (int64_t block; (block = job.next.fetch_add(1)) < classes.blocks();) {
        if (!scratch) return void(job.status = kNoMemory);
        const int count = classes.lanes(block);
        const Offsets offsets(classes, block);
        Backwards words{scratch.get() + room};
        Lanes lanes;
        for (uint32_t& x : lanes.state) x = kLeast;
        for (int64_t c = classes.components; c--;) {
            const int32_t* q = job.levels + c * classes.tokens + block * kLanes;
            if (!pack_component(job, offsets, classes.of[c], q, count, lanes, words))
                return void(job.status = kBadLevel);
        }
        for (int lane = count; lane--;) {
            words.put(lanes.state[lane] >> 16);
            words.put(lanes.state[lane]);
        }
        Piece& piece = job.pieces[size_t(block)];
        piece.size = 2 * (scratch.get() + room - words.first);
        piece.bytes.reset(new (std::nothrow) uint8_t[size_t(piece.size)]);
        if (!piece.bytes) return void(job.status = kNoMemory);
        uint8_t* to = piece.bytes.get();
        for (const uint16_t* word = words.first; word < scratch.get() + room; ++word) {
            *to++ = uint8_t(*word);
            *to++ = uint8_t(*word >> 8);
        }
    }
}

// One component of a block. Even: all lanes have one class, and it is not negative. Inside: there are
// words for all lanes in each of the first two steps.
template <bool Even, bool Inside>
void unpack_component(const Unpacking& job, const Output& output, const Offsets& offsets,
                      int32_t base, int count, uint32_t* state, Words& words, int64_t to) {
    const Classes& classes = job.classes;
    int32_t of[kLanes], high[kLanes], low[kLanes];
    uint32_t escaped = 0;
    int64_t at = words.at;
    const auto renormalised = [&words, &at](uint32_t x) { // without a branch: it could not be foreseen
        const uint32_t few = x < kLeast;
        const bool there = Inside || at < words.count;
        const uint32_t word = there ? read_word(words.first + 2 * at) : 0;
        at += few;
        return x << (few << 4) | (word & (0 - few));
    };
    const int32_t even = classes.clipped(base + offsets.most);
    for (int lane = 0; lane < count; ++lane) {
        const int32_t e = Even ? even : classes.clipped(base + offsets.of[lane]);
        of[lane] = e, high[lane] = kMiddle, low[lane] = 0;
        if (!Even && e < 0) continue;
        const uint32_t x = state[lane];
        const uint32_t slot = job.slots[size_t(e) << kSlotBits | (x & 4095)];
        high[lane] = slot & 31;
        escaped |= uint32_t(high[lane] == kEscape) << lane;
        state[lane] = renormalised((slot >> 5 & 4095) * (x >> kSlotBits) + (slot >> 17));
    }
    const bool raw = classes.raw(classes.clipped(base + offsets.least), even);
    if (raw) {
        for (int lane = 0; lane < count; ++lane) {
            const int k = of[lane] < 0 ? 0 : classes.shifts[of[lane]];
            if (!k) continue;
            low[lane] = int32_t(state[lane] & ((1u << k) - 1));
            state[lane] = renormalised(state[lane] >> k);
        }
    }
    words.at = at;
    if (output.out && !raw && !escaped) {
        for (int lane = 0; lane < count; ++lane) {
            const int32_t e = Even ? even : of[lane];
            output.out[to + lane] = !Even && e < 0 ? 0 : job.values[e * kSymbols + high[lane]];
        }
        return;
    }
    for (int lane = 0; lane < count; ++lane) high[lane] -= kMiddle;
    if (escaped) words.take_escapes(escaped, high);
    for (int lane = 0; lane < count; ++lane) {
        const int32_t e = of[lane];
        const int k = e < 0 ? 0 : classes.shifts[e];
        const int32_t q = int32_t(uint32_t(high[lane]) << k) | low[lane];
        if (output.levels) {
            output.levels[to + lane] = q;
        } else {
            const bool own = e >= 0 && !k && uint32_t(q) + kMiddle <= 2 * kMiddle;
            output.out[to + lane] = own ? job.values[e * kSymbols + kMiddle + q] : float(q);
        }
    }
}

// A block's lanes, between components.
struct Block {
    Offsets offsets;
    Words words;
    uint32_t state[kLanes];
    int64_t first; // token
    int count;

    Block(const Unpacking& job, int64_t block)
        : offsets(job.classes, block), first(block * kLanes), count(job.classes.lanes(block)) {
        const uint8_t* from = job.body + job.begins[block];
        for (int lane = 0; lane < count; ++lane) state[lane] = read_state(from + 4 * lane);
        const int64_t bytes = job.begins[block + 1] - job.begins[block];
        words = {from + 4 * count, 0, bytes / 2 - 2 * count};
    }

    bool sound() const {
        bool same = words.at == words.count;
        for (int lane = 0; lane < count; ++lane) same &= state[lane] == kLeast;
        return same;
    }
};

void unpack_some(const Unpacking& job, Block& b, const Share& share) {
    const Classes& classes = job.classes;
    const Output& output = share.output;
    for (int64_t c = share.begin; c < share.end; ++c) {
        const int32_t base = classes.of[c];
        const int64_t to = output.at(c, b.first);
        const bool inside = b.words.left() > 2 * kLanes;
        if (base + b.offsets.most < 0) {
            void* row = output.out ? static_cast<void*>(output.out + to) : output.levels + to;
            memset(row, 0, size_t(4 * b.count));
            continue;
        }
        const auto unpack = [&](auto kernel) {
            kernel(job, output, b.offsets, base, b.count, b.state, b.words, to);
        };
        if (b.offsets.least == b.offsets.most)
            inside ? unpack(unpack_component<true, true>) : unpack(unpack_component<true, false>);
        else
            inside ? unpack(unpack_component<false, true>) : unpack(unpack_component<false, false>);
    }
}

} // namespace

void generic::unpack(Unpacking& job) {
    const int64_t blocks = job.classes.blocks();
    for (int64_t group; (group = job.next.fetch_add(1)) * job.together < blocks;) {
        const int64_t first = group * job.together, most = first + job.together;
        const int64_t last = most < blocks ? most : blocks;
        alignas(Block) unsigned char room[kTogether * sizeof(Block)];
        Block* taken = reinterpret_cast<Block*>(room);
        const int count = int(last - first);
        for (int i = 0; i < count; ++i) new (taken + i) Block(job, first + i);
        for (Share share(job, first, last); share.next();)
            for (int i = 0; i < count; ++i) unpack_some(job, taken[i], share);
        for (int i = 0; i < count; ++i)
            if (!taken[i].sound()) job.status = kDamaged;
    }
}

int unpack(Unpacking& job, int isa, int64_t threads) {
const int64_t blocks = job.classes.blocks(), share = (blocks + threads - 1) / threads;
    job.together = share < kTogether ? share : kTogether;
    if (!blocks) return kOk;
    const int64_t items = (blocks + job.together - 1) / job.together;
    const double work = double(job.classes.components) * double(job.classes.tokens);
    spread(useful(threads, items, work, kDecodeWork), [&job, isa] {
#if defined(__x86_64__)
        if (isa >= kVnni) return vnni::unpack(job);
        if (isa == kAvx2) return avx2::unpack(job);
#endif
        generic::unpack(job);
    });
    return job.status;
}

} // namespace lexico

using namespace lexico;

// Of a body: *packing keeps it until lexico_entropy_drop, *bytes is what lexico_entropy_take writes.
LEXICO_EXPORT int lexico_entropy_encode(int64_t threads, const int32_t* levels,
                                        const int16_t* classes, const int8_t* offsets,
                                        int64_t components, int64_t tokens,
                                        const int32_t* frequencies, const uint8_t* shifts,
                                        int64_t count, void** packing, int64_t* bytes) try {
    auto job = std::make_unique<Packing>();
    job->classes = {classes, offsets, components, tokens, shifts, int32_t(count)};
    if (!job->classes.sound() || threads < 1) return kBadArgument;
    job->levels = levels;
    for (int64_t e = 0; e < count; ++e) {
        uint32_t start = 0;
        for (int64_t i = 0; i < kSymbols; ++i) {
            const int32_t given = frequencies[e * kSymbols + i];
            if (given < 0 || given > 4095 || (!given && i == kEscape)) return kBadArgument;
            const uint32_t f = uint32_t(given);
            const uint64_t reciprocal = f ? ((uint64_t(1) << 44) + f - 1) / f : 0;
            job->symbols.push_back({reciprocal, f << 20, uint16_t(4096 - f), uint16_t(start)});
            start += f;
        }
        if (start != 4096) return kBadArgument;
    }
    const int64_t blocks = job->classes.blocks();
    job->pieces.resize(size_t(blocks));
    const double work = double(components) * double(tokens);
    spread(useful(threads, blocks, work, kEncodeWork), [&job] { pack(*job); });
    if (job->status) return job->status;
    *bytes = 4 * blocks;
    for (const Piece& piece : job->pieces) {
        if (piece.size > int64_t(UINT32_MAX)) return kBadArgument;
        *bytes += piece.size;
    }
    *packing = job.release();
    return kOk;
} catch (const std::bad_alloc&) {
    return kNoMemory;
}

LEXICO_EXPORT void lexico_entropy_take(const void* packing, uint8_t* body) {
    const auto* job = static_cast<const Packing*>(packing);
    for (const Piece& piece : job->pieces)
        for (int i = 0; i < 4; ++i) *body++ = uint8_t(piece.size >> 8 * i);
    for (const Piece& piece : job->pieces) {
        memcpy(body, piece.bytes.get(), size_t(piece.size));
        body += piece.size;
    }
}

LEXICO_EXPORT void lexico_entropy_drop(void* packing) { delete static_cast<Packing*>(packing); }

// begins: of each stream in the body and the end after the last; the caller has checked that each
// has room for its states and whole words after them. out: float32, or int32 with as_levels.
LEXICO_EXPORT int lexico_entropy_decode(int isa, int64_t threads, const uint8_t* body,
                                        const int64_t* begins, const int16_t* classes,
                                        const int8_t* offsets, int64_t components, int64_t tokens,
                                        const uint32_t* slots, const uint16_t* starts,
                                        const float* values, const uint8_t* shifts, int64_t count,
                                        int as_levels, void* out) {
    if (!supported(isa)) return kUnsupported;
    Unpacking job;
    job.classes = {classes, offsets, components, tokens, shifts, int32_t(count)};
    if (!job.classes.sound() || threads < 1) return kBadArgument;
    job.slots = slots, job.starts = starts, job.values = values;
    job.body = body, job.begins = begins;
    job.out = as_levels ? nullptr : static_cast<float*>(out);
    job.levels = as_levels ? static_cast<int32_t*>(out) : nullptr;
    return unpack(job, isa, threads);
}

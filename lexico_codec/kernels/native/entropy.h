// The entropy coder: interleaved rANS, 32 tokens a block, see lexico_codec/kernels/entropy/coder.py.
#pragma once

#include <atomic>
#include <cstdint>

#include "layout.h"
#include "lexico.h"

namespace lexico {

constexpr int kLanes = int(kBlockTokens); // tokens of a block
constexpr int kSymbols = 32;     // -15..15 and the escape
constexpr int kMiddle = 15; // symbol of 0
constexpr int kEscape = 31;
constexpr int kSlotBits = 12;
constexpr uint32_t kLeast = 1u << 16; // state
constexpr int64_t kTogether = 4; // blocks that a thread decodes side by side, at most
constexpr int64_t kFew = 32;     // components that are decoded before they are arranged

inline uint32_t read_word(const uint8_t* from) { return from[0] | uint32_t(from[1]) << 8; }
inline uint32_t read_state(const uint8_t* from) {
    return read_word(from) | read_word(from + 2) << 16;
}

// Which class values have, and what each costs to look at.
struct Classes {
    const int16_t* of;     // [components]
    const int8_t* offsets; // [tokens], or null for zeros
    int64_t components, tokens;
    const uint8_t* shifts; // [count]
    int32_t count;

    int64_t blocks() const { return (tokens + kLanes - 1) / kLanes; }
    int lanes(int64_t block) const {
        const int64_t left = tokens - block * kLanes;
        return left < kLanes ? int(left) : kLanes;
    }
    int32_t clipped(int32_t e) const { return e < count ? e : count - 1; }
    bool sound() const { return components >= 0 && tokens >= 0 && count >= 1; }
    bool raw(int32_t from, int32_t to) const { // whether one of these has raw bits
        for (int32_t e = from > 0 ? from : 0; e <= to; ++e)
            if (shifts[e]) return true;
        return false;
    }
};

// Offsets of a block's lanes and their range.
struct Offsets {
    int32_t of[kLanes], least, most;

    Offsets(const Classes& classes, int64_t block) : of{}, least(0), most(0) {
        if (!classes.offsets) return;
        const int8_t* from = classes.offsets + block * kLanes;
        least = most = from[0];
        for (int lane = 0; lane < classes.lanes(block); ++lane) {
            of[lane] = from[lane];
            least = of[lane] < least ? of[lane] : least;
            most = of[lane] > most ? of[lane] : most;
        }
    }
};

// Where the values of a component go that a thread decodes: float32 or, where that is null, levels.
struct Output {
    float* out;
    int32_t* levels;
    int64_t stride, component, token; // the first of both that lie there

    int64_t at(int64_t c, int64_t t) const { return (c - component) * stride + t - token; }
};

struct Unpacking { // lexico_entropy_decode, lexico_entropy_arrange
    Classes classes;
    const uint32_t* slots; // [count, 4096] symbol, frequency << 5, place << 17
    const uint16_t* starts; // [count, 33] the first slot of each symbol, then 4096
    const float* values;   // [count, 32]
    const uint8_t* body;
    const int64_t* begins; // [blocks + 1]
    float* out = nullptr;  // [components, tokens], one of the two, or:
    int32_t* levels = nullptr;
    const Arranging* arranging = nullptr; // what takes the values, a few components at a time
    ArrangeRows arrange = nullptr;
    int64_t together; // blocks that a thread takes at a time
    std::atomic<int64_t> next{0};
    std::atomic<int> status{kOk};
};

// A thread's blocks first..last, and components after components of theirs.
class Share {
public:
    Share(const Unpacking& job, int64_t first, int64_t last);
    bool next(); // whether there are more; what was decoded goes where it is wanted
    int64_t begin = 0, end = 0; // components
    Output output;

private:
    const Unpacking& job_;
    int64_t first_, last_;
    float few_[kFew * kTogether * kLanes];
};

// The words of a stream. Past its end there are zeros; how many were asked for is known at the end.
struct Words {
    const uint8_t* first;
    int64_t at, count;

    int64_t left() const { return count - at; }
    uint32_t take() {
        const int64_t i = at++;
        return i < count ? read_word(first + 2 * i) : 0;
    }
    // The values above the raw bits of the lanes that have an escape.
    void take_escapes(uint32_t which, int32_t* highs) {
        uint32_t more = 0;
        for (uint32_t rest = which; rest; rest &= rest - 1) {
            const int lane = __builtin_ctz(rest);
            const uint32_t word = take();
            highs[lane] = int32_t(word & 0x7fff);
            more |= word >> 15 << lane;
        }
        for (; more; more &= more - 1) highs[__builtin_ctz(more)] |= int32_t(take() << 15);
        for (; which; which &= which - 1) {
            const int lane = __builtin_ctz(which);
            const uint32_t zigzag = uint32_t(highs[lane]);
            highs[lane] = int32_t(zigzag >> 1 ^ (0u - (zigzag & 1)));
        }
    }
};

int unpack(Unpacking& job, int isa, int64_t threads); // a status

namespace generic {
void unpack(Unpacking& job);
}
#if defined(__x86_64__)
namespace avx2 {
void unpack(Unpacking& job);
}
namespace vnni {
void unpack(Unpacking& job);
}
#endif

} // namespace lexico

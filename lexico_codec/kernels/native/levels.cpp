// Rate-distortion choice of levels, as lexico_codec/kernels/entropy/levels.py says.
#include <math.h>

#include <atomic>

#include "entropy.h"
#include "threads.h"

namespace lexico {
namespace {

constexpr double kWork = 1e5; // values that are worth a thread of their own
constexpr int kCosts = kMiddle + 2; // magnitudes 0..15, and larger ones
constexpr float kMostLevel = (1 << 30) - 1;

struct Choosing { // lexico_choose_levels
    Classes classes;
    const float* values; // [components, tokens]
    const float* bits;   // [count, 17]
    const float* points; // [count, 16]
    float weight;
    int32_t* levels; // [components, tokens]
    std::atomic<int64_t> next{0};
};

float nearest(float size) { // half to even, as torch rounds
    constexpr float kWhole = 8388608; // from 2^23 on floats are whole
    return size < kWhole ? (size + kWhole) - kWhole : size;
}

float price(const float* bits, const float* points, float size, int level, float weight) {
    const float off = size - (level <= kMiddle ? points[level] : float(level));
    return off * off + weight * bits[level <= kMiddle ? level : kMiddle + 1];
}

int32_t chosen(const Choosing& job, int32_t e, float value) {
    const float size = fabsf(value);
    if (!(size > 0.5f)) return 0;
    const int32_t near = int32_t(fminf(nearest(size), kMostLevel));
    int32_t best = near;
    if (!job.classes.shifts[e]) {
        const float* bits = job.bits + e * kCosts;
        const float* points = job.points + e * (kMiddle + 1);
        float least = price(bits, points, size, near, job.weight);
        const float below = price(bits, points, size, near - 1, job.weight);
        if (below < least) best = near - 1, least = below;
        if (price(bits, points, size, 0, job.weight) < least) best = 0;
    }
    return value < 0 ? -best : best;
}

void choose(Choosing& job) {
    const Classes& classes = job.classes;
    for (int64_t c; (c = job.next.fetch_add(1)) < classes.components;) {
        const float* values = job.values + c * classes.tokens;
        int32_t* levels = job.levels + c * classes.tokens;
        for (int64_t t = 0; t < classes.tokens; ++t) {
            const int32_t e = classes.clipped(classes.of[c] + classes.offsets[t]);
            levels[t] = e < 0 ? 0 : chosen(job, e, values[t]);
        }
    }
}

} // namespace
} // namespace lexico

using namespace lexico;

LEXICO_EXPORT int lexico_choose_levels(int64_t threads, const float* values, const int16_t* classes,
                                       const int8_t* offsets, int64_t components, int64_t tokens,
                                       const float* bits, const float* points,
                                       const uint8_t* shifts, int64_t count, float weight,
                                       int32_t* levels) {
    if (threads < 1 || components < 0 || tokens < 0 || count < 1) return kBadArgument;
    Choosing job;
    job.classes = {classes, offsets, components, tokens, shifts, int32_t(count)};
    job.values = values, job.bits = bits, job.points = points, job.weight = weight;
    job.levels = levels;
    const double work = double(components) * double(tokens);
    spread(useful(threads, components, work, kWork), [&job] { choose(job); });
    return kOk;
}

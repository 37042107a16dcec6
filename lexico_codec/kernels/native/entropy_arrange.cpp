// Streams to components in their places: the decoders' values are taken a few components at a time.
#include <memory>
#include <new>

#include "entropy.h"

namespace lexico {

Share::Share(const Unpacking& job, int64_t first, int64_t last)
    : job_(job), first_(first), last_(last) {
    if (job.arranging)
        output = {few_, nullptr, kTogether * kLanes, 0, first * kLanes};
    else
        output = {job.out, job.levels, job.classes.tokens, 0, 0};
}

bool Share::next() {
    for (int64_t block = first_; job_.arranging && block < last_; ++block) {
        const int64_t from = block * kLanes, to = from + job_.classes.lanes(block);
        job_.arrange(*job_.arranging, few_ + from - output.token, output.stride, begin, end, block,
                     from, to);
    }
    begin = end;
    const int64_t left = job_.classes.components - begin;
    end = begin + (job_.arranging && left > kFew ? kFew : left);
    if (job_.arranging) output.component = begin;
    return left > 0;
}

} // namespace lexico

using namespace lexico;

// lexico_entropy_decode and lexico_arrange in one, a few components at a time; arguments as of both.
// The first `sparsity` rows are coefficients. What is 0 in a block of 32 tokens is not written. The
// others' values lie in `out`, [blocks, rows, 32], one behind the other: `where`, [blocks, rows] and
// zeros before, says at which place, from 1 on.
LEXICO_EXPORT int lexico_entropy_arrange(int isa, int64_t threads, const uint8_t* body,
                                         const int64_t* begins, const int16_t* classes,
                                         const int8_t* offsets, int64_t coded, int64_t tokens,
                                         const uint32_t* slots, const uint16_t* starts,
                                         const float* values, const uint8_t* shifts, int64_t count,
                                         const float* scales, int64_t sparsity, int64_t width,
                                         int64_t atom_count, const int32_t* indices,
                                         const float* atoms, float coefficient_step,
                                         const int32_t* places, int64_t rows, int32_t* where,
                                         float* out) {
    if (!supported(isa)) return kUnsupported;
    Unpacking job;
    job.classes = {classes, offsets, coded, tokens, shifts, int32_t(count)};
    if (!job.classes.sound() || threads < 1 || sparsity < 0 || sparsity > coded || width < 0)
        return kBadArgument;
    job.slots = slots, job.starts = starts, job.values = values;
    job.body = body, job.begins = begins;
    const size_t blocks = size_t(job.classes.blocks()), kept = size_t(sparsity * tokens);
    const std::unique_ptr<float[]> coefficients(new (std::nothrow) float[kept]);
    const std::unique_ptr<int32_t[]> taken(new (std::nothrow) int32_t[blocks]());
    if (!coefficients || !taken) return kNoMemory;
    Arranging arranging{};
    arranging.tokens = tokens, arranging.scales = scales, arranging.rows = rows;
    arranging.sparsity = sparsity, arranging.width = sparsity ? width : 0;
    arranging.atom_count = atom_count, arranging.indices = indices, arranging.atoms = atoms;
    arranging.coefficient_step = coefficient_step, arranging.places = places;
    arranging.coefficients = coefficients.get(), arranging.taken = taken.get();
    arranging.where = where, arranging.out = out;
    job.arranging = &arranging, job.arrange = generic::arrange_rows;
#if defined(__x86_64__)
    if (isa == kAvx2) job.arrange = avx2::arrange_rows;
    if (isa >= kVnni) job.arrange = vnni::arrange_rows;
#endif
    return unpack(job, isa, threads);
}

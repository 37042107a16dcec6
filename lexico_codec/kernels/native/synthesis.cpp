// The C function of synthesis.inl.
#include "synthesis.h"

#include <algorithm>
#include <memory>

#include "threads.h"

namespace lexico {
namespace {

constexpr double kWork = 1e5; // products that are worth a thread of their own

using Step = void (*)(Synthesis&);

struct Steps {
    Step list_second, multiply_cross, multiply_bases;
};

Steps steps_of(int isa) {
#if defined(__x86_64__)
    if (isa >= kVnni) return {vnni::list_second, vnni::multiply_cross, vnni::multiply_bases};
    if (isa == kAvx2) return {avx2::list_second, avx2::multiply_cross, avx2::multiply_bases};
#endif
    (void)isa;
    return {generic::list_second, generic::multiply_cross, generic::multiply_bases};
}

void run(Synthesis& job, Step step, int64_t threads, int64_t items, double work) {
    job.next.store(0);
    if (items) spread(useful(threads, items, work, kWork), [&job, step] { step(job); });
}

// Which panels of Q the wanted tables need.
void need(Synthesis& job) {
    const int64_t rows = job.blocks * job.d;
    const int64_t first = job.selected_before(job.first_table * rows);
    const int64_t end = job.selected_before((job.first_table + job.tables) * rows);
    job.first_panel = first / kColumns;
    job.last_panel = first == end ? job.first_panel : (end + kColumns - 1) / kColumns;
}

} // namespace

// Out of line: a template of the standard library in a unit of AVX2 could serve the others too.
int64_t Synthesis::selected_before(int64_t row) const {
    return std::lower_bound(selected, selected + second, row) - selected;
}

} // namespace lexico

using namespace lexico;

// sizes: components, tokens, second, kept; blocks and d; first and number of the tables, first
// column and the one after the last that are wanted. What is made goes to `out`, or where it is null
// to memory as of lexico_scatter. laid: heads, m; slots of a block and the first slot; pairs, and
// whether they are interleaved. The caller has checked them.
LEXICO_EXPORT int lexico_synthesise(int isa, int64_t threads, const int64_t* sizes,
                                    const float* arranged, const int32_t* where,
                                    const int64_t* selected, const int16_t* cross,
                                    const float* cross_units, const float* bases,
                                    float* out, const int64_t* laid, int kind, void* const* parts,
                                    const int64_t* strides, int64_t step, const int64_t* blocks_of,
                                    const float* means, const float* cos, const float* sin) {
    if (!supported(isa)) return kUnsupported;
    Synthesis job;
    job.components = sizes[0], job.tokens = sizes[1], job.second = sizes[2], job.kept = sizes[3];
    job.blocks = sizes[4], job.d = sizes[5];
    job.first_table = sizes[6], job.tables = sizes[7], job.start = sizes[8], job.stop = sizes[9];
    for (int i = 0; i < 10; ++i)
        if (sizes[i] < 0) return kBadArgument;
    if (threads < 1 || job.d < 1 || job.kept > job.second || job.start > job.stop ||
        job.stop > job.blocks * job.d || job.d > INT32_MAX)
        return kBadArgument;
    Laying laying;
    if (!out) {
        laying.tables = job.tables, laying.tokens = job.tokens;
        laying.heads = laid[0], laying.m = laid[1];
        laying.memory = {parts, strides, step, blocks_of, laid[2], laid[3]};
        laying.turning = {cos, sin, laid[4], laid[5] != 0};
        laying.kind = kind, laying.row_kind = kFloat32, laying.means = means;
        if (!sound(laying) || laying.heads * laying.m != job.stop - job.start) return kBadArgument;
    }
    job.out = out, job.laying = &laying, job.where = where;
    job.arranged = arranged, job.selected = selected;
    job.cross = cross, job.cross_units = cross_units;
    job.bases = bases;
    need(job);
    const int64_t chunks = job.chunks(), panels = (job.second + kColumns - 1) / kColumns;
    const std::unique_ptr<Short[]> lists(new (std::nothrow) Short[chunks * kSome * kListed]);
    const std::unique_ptr<float[]> units(new (std::nothrow) float[chunks * kSome]);
    const std::unique_ptr<int32_t[]> starts(new (std::nothrow) int32_t[chunks * (kSome + 1)]);
    const std::unique_ptr<float[]> z(new (std::nothrow) float[panels * kSome * kColumns]);
    if (!lists || !units || !starts || !z) return kNoMemory;
    job.lists = lists.get(), job.units = units.get(), job.starts = starts.get(), job.z = z.get();
    const Steps steps = steps_of(isa);
    const int64_t wanted_panels = job.last_panel - job.first_panel;
    const int64_t blocks = job.tables * job.wanted_blocks();
    for (; job.from < job.tokens; job.from += kSome) {
        job.some = job.tokens - job.from < kSome ? job.tokens - job.from : kSome;
        const double each = double(job.some);
        if (wanted_panels) {
            run(job, steps.list_second, threads, chunks, each * double(job.kept));
            run(job, steps.multiply_cross, threads, wanted_panels,
                each * double(job.kept) * double(wanted_panels * kColumns));
        }
        run(job, steps.multiply_bases, threads, job.tables,
            each * double(blocks) * double(job.d) * double(job.d));
        if (job.status.load()) return job.status.load();
    }
    return kOk;
}

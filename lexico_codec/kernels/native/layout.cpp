// The C functions of layout.inl.
#include "layout.h"

#include "threads.h"

namespace lexico {
namespace {

constexpr double kWork = 1e5; // values that are worth a thread of their own
constexpr int64_t kTokens = 16; // of a table that a thread takes at a time

using Lay = void (*)(Laying&);

int lay(Laying& job, int isa, int64_t threads, const Lay (&kernels)[3]) {
    if (!supported(isa)) return kUnsupported;
    if (threads < 1 || !sound(job)) return kBadArgument;
    job.chunk = kTokens;
    const int64_t items = job.tables * job.chunks();
    if (!items) return kOk;
    const Lay kernel = kernels[isa >= kVnni ? 2 : isa];
    const double work = double(items) * double(kTokens * job.heads * job.m);
    spread(useful(threads, items, work, kWork), [&job, kernel] { kernel(job); });
    return kOk;
}

#if defined(__x86_64__)
constexpr Lay kGather[3] = {generic::gather, avx2::gather, vnni::gather};
constexpr Lay kScatter[3] = {generic::scatter, avx2::scatter, vnni::scatter};
#else
constexpr Lay kGather[3] = {generic::gather, generic::gather, generic::gather};
constexpr Lay kScatter[3] = {generic::scatter, generic::scatter, generic::scatter};
#endif

} // namespace

bool sound(const Laying& job) {
    if (job.tables < 0 || job.tokens < 0 || job.heads < 0) return false;
    if (job.m < 0 || job.m > kMostHead || 2 * job.turning.pairs > job.m) return false;
    for (const int kind : {job.kind, job.row_kind})
        if (kind < kFloat32 || kind > kBfloat16) return false;
    return job.memory.takes(job.tables, job.m);
}

} // namespace lexico

using namespace lexico;

// sizes: tables, tokens, heads, m; slots of a block and the first slot; pairs, and whether they are
// interleaved. parts, strides, step, blocks: see Memory. rows: float32.
LEXICO_EXPORT int lexico_gather(int isa, int64_t threads, const int64_t* sizes, int kind,
                                void* const* parts, const int64_t* strides, int64_t step,
                                const int64_t* blocks, const float* means, const float* cos,
                                const float* sin, float* rows) {
    Laying job;
    job.tables = sizes[0], job.tokens = sizes[1], job.heads = sizes[2], job.m = sizes[3];
    job.memory = {parts, strides, step, blocks, sizes[4], sizes[5]};
    job.turning = {cos, sin, sizes[6], sizes[7] != 0};
    job.kind = kind, job.row_kind = kFloat32;
    job.means = means, job.rows = rows;
    return lay(job, isa, threads, kGather);
}

// As lexico_gather, backwards; rows: float32 or bfloat16.
LEXICO_EXPORT int lexico_scatter(int isa, int64_t threads, const int64_t* sizes, int kind,
                                 void* const* parts, const int64_t* strides, int64_t step,
                                 const int64_t* blocks, const float* means, const float* cos,
                                 const float* sin, const void* rows, int row_kind) {
    Laying job;
    job.tables = sizes[0], job.tokens = sizes[1], job.heads = sizes[2], job.m = sizes[3];
    job.memory = {parts, strides, step, blocks, sizes[4], sizes[5]};
    job.turning = {cos, sin, sizes[6], sizes[7] != 0};
    job.kind = kind, job.row_kind = row_kind;
    job.means = means, job.rows = const_cast<void*>(rows);
    return lay(job, isa, threads, kScatter);
}

// The caller has checked that indices are under atom_count and places within out.
LEXICO_EXPORT int lexico_arrange(int isa, int64_t threads, int64_t components, int64_t tokens,
                                 int64_t count, const float* values, const float* scales,
                                 int64_t sparsity, int64_t width, int64_t atom_count,
                                 const int32_t* indices, const float* atoms,
                                 float coefficient_step, const int32_t* places, int kind,
                                 void* out) {
    if (!supported(isa)) return kUnsupported;
    if (threads < 1 || components < 0 || tokens < 0 || count < 0 || sparsity < 0 || width < 0)
        return kBadArgument;
    if (count > components || (kind != kFloat32 && kind != kBfloat16)) return kBadArgument;
    Arranging job;
    job.components = components, job.tokens = tokens, job.count = count;
    job.values = values, job.scales = scales;
    job.sparsity = sparsity, job.width = width, job.atom_count = atom_count;
    job.indices = indices, job.atoms = atoms, job.coefficient_step = coefficient_step;
    job.places = places, job.kind = kind, job.out = out;
    const double work = double(components) * double(tokens);
    spread(useful(threads, components, work, kWork), [&job, isa] {
#if defined(__x86_64__)
        if (isa >= kVnni) return vnni::arrange(job);
        if (isa == kAvx2) return avx2::arrange(job);
#endif
        generic::arrange(job);
    });
    return kOk;
}

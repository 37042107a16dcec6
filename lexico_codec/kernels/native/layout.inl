// Vectors between the memory of a cache and the rows that codec lexico-residual transforms, and
// decoded components to where its products want them: one pass each, see kernels/layout.py.

LEXICO_INLINE float get(const float* in) { return *in; }
LEXICO_INLINE float get(const Half* in) {
    const uint32_t sign = uint32_t(in->bits & 0x8000) << 16, size = in->bits & 0x7fffu;
    uint32_t b;
    if (size >= 0x7c00) { // infinities, no numbers
        b = 0x7f800000 | (size & 0x3ff) << 13;
    } else if (size < 0x400) { // subnormals: whole 2^-24
        const float small = float(size) * 5.9604644775390625e-8f;
        __builtin_memcpy(&b, &small, 4);
    } else {
        b = (size << 13) + 0x38000000;
    }
    b |= sign;
    float x;
    __builtin_memcpy(&x, &b, 4);
    return x;
}
LEXICO_INLINE float get(const Brain* in) {
    const uint32_t b = uint32_t(in->bits) << 16;
    float x;
    __builtin_memcpy(&x, &b, 4);
    return x;
}

LEXICO_INLINE F16 get16(const float* in) { return load(in); }
LEXICO_INLINE F16 get16(const Half* in) {
    F16 a;
#if LEXICO_WIDTH == 16
    a.v[0] = (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(in)));
#elif LEXICO_WIDTH == 8
    for (int i = 0; i < R; ++i)
        a.v[i] = (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 8 * i)));
#else
    for (int lane = 0; lane < 16; ++lane) a.v[lane / W][lane % W] = get(in + lane);
#endif
    return a;
}
LEXICO_INLINE F16 get16(const Brain* in) {
    F16 a;
#if LEXICO_WIDTH == 16
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(in));
    a.v[0] = (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif LEXICO_WIDTH == 8
    for (int i = 0; i < R; ++i) {
        const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + 8 * i));
        a.v[i] = (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
    }
#else
    for (int lane = 0; lane < 16; ++lane) a.v[lane / W][lane % W] = get(in + lane);
#endif
    return a;
}

template <typename T>
LEXICO_INLINE void widen(const T* in, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, get16(in + i));
    for (; i < n; ++i) out[i] = get(in + i);
}

// Within the type's range; what is no number stays none.
template <typename T>
LEXICO_INLINE void narrow(const float* in, int64_t n, T* out) {
    constexpr float most = Range<T>::largest;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) put(out + i, bounded(load(in + i), most));
    for (; i < n; ++i) {
        const float x = in[i];
        put(out + i, x > most ? most : x < -most ? -most : x);
    }
}

// Pair i of a vector, turned: (a cos - b sin, b cos + a sin).
LEXICO_INLINE void turn(const Turning& by, int64_t token, float* row) {
    const float *cos = by.cos + token * by.pairs, *sin = by.sin + token * by.pairs;
    if (by.interleaved) {
        for (int64_t i = 0; i < by.pairs; ++i) {
            const float a = row[2 * i], b = row[2 * i + 1];
            row[2 * i] = a * cos[i] - b * sin[i];
            row[2 * i + 1] = b * cos[i] + a * sin[i];
        }
        return;
    }
    float *first = row, *second = row + by.pairs;
    int64_t i = 0;
    for (; i + 16 <= by.pairs; i += 16) {
        const F16 a = load(first + i), b = load(second + i);
        const F16 c = load(cos + i), s = load(sin + i);
        store(first + i, less_product(a * c, b, s));
        store(second + i, add_product(b * c, a, s));
    }
    for (; i < by.pairs; ++i) {
        const float a = first[i], b = second[i];
        first[i] = a * cos[i] - b * sin[i];
        second[i] = b * cos[i] + a * sin[i];
    }
}

// As above, of values that may lie apart.
template <typename T>
LEXICO_INLINE void widen(const T* in, int64_t apart, int64_t n, float* out) {
    if (apart == 1) return widen(in, n, out);
    for (int64_t i = 0; i < n; ++i) out[i] = get(in + i * apart);
}
template <typename T>
LEXICO_INLINE void narrow(const float* in, int64_t n, int64_t apart, T* out) {
    if (apart == 1) return narrow(in, n, out);
    T vector[kMostHead];
    narrow(in, n, vector);
    for (int64_t i = 0; i < n; ++i) out[i * apart] = vector[i];
}

template <typename T>
static void gather_as(Laying& job) {
    const int64_t m = job.m, width = job.heads * m;
    for (int64_t item; (item = job.next.fetch_add(1)) < job.tables * job.chunks();) {
        const int64_t table = item / job.chunks(), from = item % job.chunks() * job.chunk;
        const int64_t to = from + job.chunk < job.tokens ? from + job.chunk : job.tokens;
        const bool keys = table % 2 == 0;
        const float* means = job.means + table * width;
        const int64_t head_stride = job.memory.head_stride(table);
        for (int64_t token = from; token < to; ++token) {
            const T* in = static_cast<const T*>(job.memory.parts[table]) +
                          job.memory.offset(table, token);
            float* out = static_cast<float*>(job.rows) + (table * job.tokens + token) * width;
            for (int64_t head = 0; head < job.heads; ++head, in += head_stride, out += m) {
                widen(in, job.memory.stride(table), m, out);
                if (keys && job.turning.pairs) turn(job.turning, token, out);
                for (int64_t i = 0; i < m; ++i) out[i] -= means[head * m + i];
            }
        }
    }
}

// A token's row of a table, its mean added, turned where it is a key's, to where it lies.
template <typename T, typename Row>
LEXICO_INLINE void lay_row(const Laying& job, int64_t table, int64_t token, const Row* in) {
    constexpr float room = 1e30f; // what may be turned without overflow
    const int64_t m = job.m, head_stride = job.memory.head_stride(table);
    const bool turned = table % 2 == 0 && job.turning.pairs;
    const float* means = job.means + table * job.heads * m;
    float row[kMostHead];
    T* out = static_cast<T*>(job.memory.parts[table]) + job.memory.offset(table, token);
    for (int64_t head = 0; head < job.heads; ++head, out += head_stride) {
        widen(in + head * m, m, row);
        for (int64_t i = 0; i < m; ++i) {
            const float x = row[i] + means[head * m + i];
            row[i] = x > room ? room : x < -room ? -room : x == x ? x : 0;
        }
        if (turned) turn(job.turning, token, row);
        narrow(row, m, job.memory.stride(table), out);
    }
}

LEXICO_INLINE void lay_row(const Laying& job, int64_t table, int64_t token, const float* in) {
    if (job.kind == kFloat16) return lay_row<Half>(job, table, token, in);
    if (job.kind == kBfloat16) return lay_row<Brain>(job, table, token, in);
    lay_row<float>(job, table, token, in);
}

template <typename T, typename Row>
static void scatter_as(Laying& job) {
    const int64_t width = job.heads * job.m;
    for (int64_t item; (item = job.next.fetch_add(1)) < job.tables * job.chunks();) {
        const int64_t table = item / job.chunks(), from = item % job.chunks() * job.chunk;
        const int64_t to = from + job.chunk < job.tokens ? from + job.chunk : job.tokens;
        for (int64_t token = from; token < to; ++token)
            lay_row<T>(job, table, token,
                       static_cast<const Row*>(job.rows) + (table * job.tokens + token) * width);
    }
}

LEXICO_INLINE bool nothing(const float* values, int64_t n) {
    int64_t i = 0;
    I any = {};
    for (; i + 16 <= n; i += 16) {
        const F16 some = load(values + i);
        for (int part = 0; part < R; ++part) any |= (I)some.v[part];
    }
    int32_t rest = 0;
    for (int lane = 0; lane < W; ++lane) rest |= any[lane];
    for (; i < n; ++i) {
        int32_t bits;
        __builtin_memcpy(&bits, values + i, 4);
        rest |= bits;
    }
    return !(rest & 0x7fffffff);
}

template <typename T>
static void arrange_as(Arranging& job) {
    constexpr int64_t kRows = 32; // a thread takes
    const int64_t tokens = job.tokens;
    float row[kMostChunk];
    for (int64_t item; (item = job.next.fetch_add(1)) * kRows < job.components;) {
        const int64_t end = (item + 1) * kRows;
        for (int64_t c = item * kRows; c < end && c < job.components; ++c) {
            T* out = static_cast<T*>(job.out) + job.places[c] * tokens;
            if (c >= job.count) {
                __builtin_memset(out, 0, size_t(tokens) * sizeof(T));
                continue;
            }
            const float* values = job.values + (job.sparsity + c) * tokens;
            for (int64_t from = 0; from < tokens; from += kMostChunk) {
                const int64_t n = tokens - from < kMostChunk ? tokens - from : kMostChunk;
                for (int64_t t = 0; t < n; ++t) row[t] = values[from + t];
                for (int64_t k = 0; c < job.width && k < job.sparsity; ++k) {
                    const float* coefficients = job.values + k * tokens + from;
                    const int32_t* indices = job.indices + k * tokens + from;
                    const float* atoms = job.atoms + c * job.atom_count;
                    for (int64_t t = 0; t < n; ++t)
                        row[t] += atoms[indices[t]] * (job.coefficient_step * coefficients[t]);
                }
                for (int64_t t = 0; t < n; ++t) row[t] *= job.scales[from + t];
                narrow(row, n, out + from);
            }
        }
    }
}

void gather(Laying& job) {
    if (job.kind == kFloat16) return gather_as<Half>(job);
    if (job.kind == kBfloat16) return gather_as<Brain>(job);
    gather_as<float>(job);
}

template <typename Row>
static void scatter_rows(Laying& job) {
    if (job.kind == kFloat16) return scatter_as<Half, Row>(job);
    if (job.kind == kBfloat16) return scatter_as<Brain, Row>(job);
    scatter_as<float, Row>(job);
}

void scatter(Laying& job) {
    if (job.row_kind == kBfloat16) return scatter_rows<Brain>(job);
    scatter_rows<float>(job);
}

void arrange_rows(const Arranging& job, const float* values, int64_t stride, int64_t first,
                  int64_t end, int64_t block, int64_t from, int64_t to) {
    const int64_t n = to - from;
    float* const out = static_cast<float*>(job.out) + block * job.rows * kBlockTokens;
    float scales[kBlockTokens] = {};
    __builtin_memcpy(scales, job.scales + from, size_t(n) * sizeof *scales);
    for (int64_t r = first; r < end; ++r, values += stride) {
        if (r < job.sparsity) {
            __builtin_memcpy(job.coefficients + r * job.tokens + from, values,
                             size_t(n) * sizeof *values);
            continue;
        }
        const int64_t c = r - job.sparsity;
        if (c >= job.width && nothing(values, n)) continue;
        float* row = out + job.taken[block] * kBlockTokens;
        job.where[block * job.rows + job.places[c]] = ++job.taken[block];
        if (c >= job.width && n == kBlockTokens) {
            for (int64_t t = 0; t < kBlockTokens; t += 16)
                store(row + t, load(values + t) * load(scales + t));
            continue;
        }
        for (int64_t t = 0; t < kBlockTokens; ++t) row[t] = t < n ? values[t] : 0;
        for (int64_t k = 0; c < job.width && k < job.sparsity; ++k) {
            const float* coefficients = job.coefficients + k * job.tokens + from;
            const int32_t* indices = job.indices + k * job.tokens + from;
            const float* atoms = job.atoms + c * job.atom_count;
            for (int64_t t = 0; t < n; ++t)
                row[t] += atoms[indices[t]] * (job.coefficient_step * coefficients[t]);
        }
        for (int64_t t = 0; t < kBlockTokens; ++t) row[t] *= scales[t];
    }
}

void arrange(Arranging& job) {
    if (job.kind == kBfloat16) return arrange_as<Brain>(job);
    arrange_as<float>(job);
}

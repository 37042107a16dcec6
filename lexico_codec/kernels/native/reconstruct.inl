// Decoding of chunks of rows: a sum of a few atoms, 64 values of it in registers at a time.
//
// `reconstruct` gives float32 rows of plain codes; `restore` takes codes as a frame stores them and
// writes rows where the caller wants them, in his type, values beyond its range as its largest.

LEXICO_INLINE bool sound(const int32_t* indices, int32_t count, int64_t s, int64_t atoms) {
    if (count < 0 || count > s) return false;
    uint32_t top = 0; // a negative index is a large one
    for (int32_t k = 0; k < count; ++k)
        top = uint32_t(indices[k]) > top ? uint32_t(indices[k]) : top;
    return int64_t(top) < atoms;
}

// A value in the types of caches. Halves round to nearest, ties to even.
LEXICO_INLINE void put(float* out, float x) { *out = x; }

struct Half {
    static constexpr float largest = 65504;
    uint16_t bits;
};
struct Brain { // bfloat16
    static constexpr float largest = 3.38953139e38f;
    uint16_t bits;
};

LEXICO_INLINE uint32_t bits_of(float x) {
    uint32_t b;
    __builtin_memcpy(&b, &x, 4);
    return b;
}
LEXICO_INLINE void put(Half* out, float x) { // within its range, or no number
    const uint32_t all = bits_of(x), sign = all >> 16 & 0x8000;
    uint32_t b = all & 0x7fffffff;
    if (b > 0x7f800000)
        b = 0x7e00;
    else if (b < 0x38800000) // less than 2^-14: 0.5 has the last place of its subnormals
        b = bits_of(__builtin_fabsf(x) + 0.5f) - 0x3f000000;
    else
        b = (b + 0xfff + (b >> 13 & 1) - 0x38000000) >> 13;
    out->bits = uint16_t(sign | b);
}
LEXICO_INLINE void put(Brain* out, float x) {
    const uint32_t b = bits_of(x);
    out->bits = x == x ? uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16) : uint16_t(0x7fc0);
}

LEXICO_INLINE void put(float* out, F16 x) { store(out, x); }
LEXICO_INLINE void put(Half* out, F16 x) {
#if LEXICO_WIDTH == 16
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtps_ph((__m512)x.v[0], 0));
#elif LEXICO_WIDTH == 8
    for (int i = 0; i < R; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 8 * i),
                         _mm256_cvtps_ph((__m256)x.v[i], 0));
#else
    for (int lane = 0; lane < 16; ++lane) put(out + lane, x.v[lane / W][lane % W]);
#endif
}
LEXICO_INLINE void put(Brain* out, F16 x) {
    for (int lane = 0; lane < 16; ++lane) put(out + lane, x.v[lane / W][lane % W]);
}

template <typename T> struct Range { static constexpr float largest = T::largest; };
template <> struct Range<float> { static constexpr float largest = 3.40282347e38f; };

LEXICO_INLINE F16 bounded(F16 x, float most) { // what is no number stays none
    return min(all(most), max(all(-most), x));
}

// The sixteen times N values of one row from `table` and `out` on.
template <int N, bool BOUND, typename Index, typename T>
LEXICO_INLINE void accumulate(const float* table, int64_t m, const Index* indices,
                              const float* coefficients, int32_t count, T* out) {
    F16 sum[N];
    for (int i = 0; i < N; ++i) sum[i] = all(0);
    for (int32_t k = 0; k < count; ++k) {
        const float* atom = table + int64_t(indices[k]) * m;
        const F16 c = all(coefficients[k]);
        for (int i = 0; i < N; ++i) sum[i] = add_product(sum[i], c, load(atom + 16 * i));
    }
    for (int i = 0; i < N; ++i)
        put(out + 16 * i, BOUND ? bounded(sum[i], Range<T>::largest) : sum[i]);
}

template <bool BOUND, typename Index, typename T>
LEXICO_INLINE void sum_row(const float* table, int64_t m, const Index* indices,
                           const float* coefficients, int32_t count, T* out) {
    int64_t i = 0;
    for (; i + 64 <= m; i += 64)
        accumulate<4, BOUND>(table + i, m, indices, coefficients, count, out + i);
    for (; i + 16 <= m; i += 16)
        accumulate<1, BOUND>(table + i, m, indices, coefficients, count, out + i);
    for (; i < m; ++i) {
        constexpr float most = Range<T>::largest;
        float sum = 0;
        for (int32_t k = 0; k < count; ++k)
            sum += coefficients[k] * table[int64_t(indices[k]) * m + i];
        if (BOUND) sum = sum > most ? most : sum < -most ? -most : sum;
        put(out + i, sum);
    }
}

void reconstruct(Decoding& job) {
    const int64_t chunks = job.chunks(), m = job.m, s = job.s;
    for (;;) {
        const int64_t item = job.next.fetch_add(1, std::memory_order_relaxed);
        if (item >= job.tables * chunks || job.status.load(std::memory_order_relaxed)) return;
        const int64_t t = item / chunks, from = item % chunks * job.chunk;
        const int64_t to = from + job.chunk < job.rows ? from + job.chunk : job.rows;
        const int64_t atoms = job.starts[t + 1] - job.starts[t];
        const float* table = job.table + job.starts[t] * m;
        for (int64_t row = t * job.rows + from; row < t * job.rows + to; ++row) {
            const int32_t* indices = job.indices + row * s;
            const float* coefficients = job.coefficients + row * s;
            const int32_t count = job.counts[row];
            if (!sound(indices, count, s, atoms)) return job.fail(kBadIndex);
            float* out = job.out + row * m;
            sum_row<false>(table, m, indices, coefficients, count, out);
        }
    }
}

template <typename T>
static void restore_as(Restoring& job) {
    const int64_t chunks = job.chunks(), m = job.m, s = job.s;
    constexpr float most = Range<float>::largest;
    float coefficients[256];
    T vector[kMostHead]; // of components that lie apart
    for (;;) {
        const int64_t item = job.next.fetch_add(1, std::memory_order_relaxed);
        if (item >= job.tables * chunks || job.status.load(std::memory_order_relaxed)) return;
        const int64_t t = item / chunks, from = item % chunks * job.chunk;
        const int64_t to = from + job.chunk < job.rows ? from + job.chunk : job.rows;
        const int64_t atoms = job.starts[t + 1] - job.starts[t];
        const float* table = job.table + job.starts[t] * m;
        int64_t token = from / job.heads, head = from % job.heads;
        for (int64_t r = from; r < to; ++r) {
            const int64_t row = t * job.rows + r;
            const int16_t* indices = job.indices + row * s;
            const int32_t count = job.counts[row];
            if (count > s) return job.fail(kBadIndex);
            uint32_t top = 0; // a negative index is a large one
            const float power = __builtin_ldexpf(1, -job.exponents[row]);
            for (int32_t k = 0; k < count; ++k) {
                top = uint32_t(indices[k]) > top ? uint32_t(indices[k]) : top;
                const float c = job.e4m3[job.bits[row * s + k]] * power;
                coefficients[k] = c > most ? most : c < -most ? -most : c;
            }
            if (int64_t(top) >= atoms) return job.fail(kBadIndex);
            T* out = static_cast<T*>(job.memory.parts[t]) + job.memory.offset(t, token) +
                     head * job.memory.head_stride(t);
            const int64_t apart = job.memory.stride(t);
            sum_row<true>(table, m, indices, coefficients, count, apart == 1 ? out : vector);
            for (int64_t i = 0; apart != 1 && i < m; ++i) out[i * apart] = vector[i];
            if (++head == job.heads) head = 0, ++token;
        }
    }
}

void restore(Restoring& job) {
    if (job.kind == kFloat16) return restore_as<Half>(job);
    if (job.kind == kBfloat16) return restore_as<Brain>(job);
    restore_as<float>(job);
}

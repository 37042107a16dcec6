// Products of decoded components with a transform's matrices, of what is not zero alone.
//
// Most levels of a page are zero. Each token lists its others, and adds up their rows of the
// matrix, 64 columns at a time in registers. Matrices lie in panels of those columns. Q, large, is
// read from memory once for a few tokens. It lies there in 16 bits, and so do a token's values for a
// tile of its rows, both in units that no sum can pass 32767 of: |sum| <= ||values|| ||column||, by
// Cauchy-Schwarz. A product keeps its upper half, rounded: sixteen take two instructions of AVX2,
// where float32 takes four.

typedef int16_t S __attribute__((vector_size(W * 4)));
typedef int16_t SU __attribute__((vector_size(W * 4), aligned(2), may_alias));
constexpr int W2 = 2 * W; // shorts of a register
constexpr int kShorts = int(kColumns) / W2;
constexpr int64_t kAhead = kListed * kColumns / 32 / kSome; // lines of the next tile, a token

LEXICO_INLINE S halved_product(S a, S b) { // (a b + 2^14) >> 15
#if LEXICO_WIDTH == 16
    return (S)_mm512_mulhrs_epi16((__m512i)a, (__m512i)b);
#elif LEXICO_WIDTH == 8
    return (S)_mm256_mulhrs_epi16((__m256i)a, (__m256i)b);
#elif defined(__aarch64__)
    return (S)vqrdmulhq_s16((int16x8_t)a, (int16x8_t)b);
#elif defined(__SSE2__)
    const __m128i high = _mm_mulhi_epi16((__m128i)a, (__m128i)b);
    const __m128i low = _mm_srli_epi16(_mm_mullo_epi16((__m128i)a, (__m128i)b), 14);
    const __m128i rounded = _mm_srli_epi16(_mm_add_epi16(low, _mm_set1_epi16(1)), 1);
    return (S)_mm_add_epi16(_mm_slli_epi16(high, 1), rounded);
#else
    S c;
    for (int i = 0; i < W2; ++i) c[i] = int16_t((int32_t(a[i]) * b[i] + 0x4000) >> 15);
    return c;
#endif
}

// The low or the high half of a register of shorts, as floats.
template <int half> LEXICO_INLINE V widened(S sum) {
#if LEXICO_WIDTH == 16
    return (V)_mm512_cvtepi32_ps(
        _mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64((__m512i)sum, half)));
#elif LEXICO_WIDTH == 8
    return (V)_mm256_cvtepi32_ps(
        _mm256_cvtepi16_epi32(_mm256_extracti128_si256((__m256i)sum, half)));
#else
    V wide;
    for (int lane = 0; lane < W; ++lane) wide[lane] = float(sum[W * half + lane]);
    return wide;
#endif
}

// Sums times what one of their units is, onto floats.
LEXICO_INLINE void add_shorts(const S (&sum)[kShorts], float unit, float* to) {
    const V by = V{} + unit;
    for (int i = 0; i < kShorts; ++i, to += W2) {
        VU* both = reinterpret_cast<VU*>(to);
        *both = fused(by, widened<0>(sum[i]), *both);
        both = reinterpret_cast<VU*>(to + W);
        *both = fused(by, widened<1>(sum[i]), *both);
    }
}

// Rows of a tile of Q times their values, onto 64 sums.
LEXICO_INLINE void add_short_rows(const int16_t* tile, const Short* entries, int32_t count,
                                  float unit, float* sums) {
    S sum[kShorts] = {};
    for (const Short* end = entries + count; entries < end; ++entries) {
        const S by = (S)(I{} + entries->twice);
        const int16_t* row = tile + entries->place;
        for (int i = 0; i < kShorts; ++i)
            sum[i] += halved_product(*reinterpret_cast<const SU*>(row + i * W2), by);
    }
    add_shorts(sum, unit, sums);
}

// Rows of a panel, `stride` apart, times their values, onto 64 sums.
template <int64_t stride, typename T>
LEXICO_INLINE void add_rows(const T* panel, const Entry* entries, int32_t count, float* sums) {
    F16 sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = load(sums + 16 * i);
    for (int32_t k = 0; k < count; ++k) {
        const F16 c = all(entries[k].value);
        const T* row = panel + int64_t(entries[k].row) * stride;
        for (int i = 0; i < 4; ++i) sum[i] = add_product(sum[i], c, load(row + 16 * i));
    }
    for (int i = 0; i < 4; ++i) store(sums + 16 * i, sum[i]);
}

LEXICO_INLINE bool nothing(const float* values, int64_t tokens) {
    bool some = false;
    for (int64_t t = 0; t < tokens; ++t) some |= values[t] != 0;
    return !some;
}

// Each token's entry of one row, where it is not zero; `stride` from token to token.
LEXICO_INLINE void list_row(const float* values, int64_t stride, int64_t tokens, int32_t row,
                            int64_t most, Entry* lists, int32_t* counts) {
    for (int64_t t = 0; t < tokens; ++t) {
        const float value = values[t * stride];
        lists[t * most + counts[t]] = {value, row};
        counts[t] += value != 0;
    }
}

// A token's entries of 64 rows as shorts, and what a unit of theirs is. Where one is no number, or
// too large for a sum of squares, the unit is no number.
LEXICO_INLINE float shorten(const Entry* entries, int32_t count, Short* to) {
    float square = 0;
    for (int32_t k = 0; k < count; ++k) square += entries[k].value * entries[k].value;
    const float norm = __builtin_sqrtf(square), most = kMostShort / norm;
    const bool sound = norm > kLeastNorm && norm < kMostNorm;
    for (int32_t k = 0; k < count; ++k) {
        const float value = sound ? entries[k].value * most : 0;
        const int32_t whole = int32_t(value + (value < 0 ? -0.5f : 0.5f));
        to[k] = {int32_t(uint32_t(whole) << 16 | (uint32_t(whole) & 0xffff)),
                 entries[k].row * int32_t(kColumns)};
    }
    return sound ? norm / kMostShort : norm <= kLeastNorm ? 0 : __builtin_nanf("");
}

void list_second(Synthesis& job) {
    Entry lists[kSome * kListed];
    int32_t counts[kSome];
    for (int64_t chunk; (chunk = job.next.fetch_add(1)) < job.chunks();) {
        const int64_t first = first_of(chunk), next = first_of(chunk + 1);
        const int64_t end = next < job.kept ? next : job.kept;
        __builtin_memset(counts, 0, sizeof counts);
        for (int64_t k = first; k < end; ++k) {
            const float* row = job.arranged + (job.components + k) * job.tokens + job.from;
            list_row(row, 1, job.some, int32_t(k - first), kListed, lists, counts);
        }
        int32_t* starts = job.starts + chunk * (kSome + 1);
        float* units = job.units + chunk * kSome;
        int32_t start = 0;
        for (int64_t t = 0; t < job.some; ++t) {
            starts[t] = start;
            Short* to = job.lists + chunk * kSome * kListed + start;
            units[t] = shorten(lists + t * kListed, counts[t], to);
            start += counts[t];
        }
        starts[job.some] = start;
    }
}

void multiply_cross(Synthesis& job) {
    const int64_t tiles = job.tiles();
    for (int64_t item; (item = job.next.fetch_add(1)) < job.last_panel - job.first_panel;) {
        const int64_t panel = job.first_panel + item;
        const int16_t* matrix = job.cross + panel * job.second * kColumns;
        float* z = job.z + panel * kSome * kColumns;
        __builtin_memset(z, 0, size_t(job.some * kColumns) * sizeof *z);
        for (int64_t chunk = 0; chunk < job.chunks(); ++chunk) {
            const int16_t* tile = matrix + first_of(chunk) * kColumns;
            const int16_t* ahead = matrix + first_of(chunk + 1) * kColumns;
            const Short* lists = job.lists + chunk * kSome * kListed;
            const int32_t* starts = job.starts + chunk * (kSome + 1);
            const float* units = job.units + chunk * kSome;
            const float unit = job.cross_units[panel * tiles + chunk];
            for (int64_t t = 0; t < job.some; ++t) {
                for (int64_t line = 0; line < kAhead; ++line)
                    __builtin_prefetch(ahead + (t * kAhead + line) * 32);
                const int32_t count = starts[t + 1] - starts[t];
                if (count)
                    add_short_rows(tile, lists + starts[t], count, units[t] * unit,
                                   z + t * kColumns);
            }
        }
    }
}

void multiply_bases(Synthesis& job) {
    const int64_t d = job.d, wanted = job.wanted_blocks(), width = job.stop - job.start;
    Entry* lists = nullptr; // [kSome, d]
    int32_t counts[kSome];
    for (int64_t item; (item = job.next.fetch_add(1)) < job.tables * wanted;) {
        if (!lists) lists = static_cast<Entry*>(malloc(size_t(kSome * (d + 1)) * sizeof(Entry)));
        if (!lists) {
            job.status.store(kNoMemory);
            return;
        }
        const int64_t table = item / wanted, block = job.first_block() + item % wanted;
        const int64_t whole = (job.first_table + table) * job.blocks + block;
        const int64_t *selected = job.selected + job.selected_before(whole * d);
        const int64_t *none = job.selected + job.second;
        __builtin_memset(counts, 0, sizeof counts);
        for (int64_t i = 0; i < d; ++i) {
            const float* values = job.arranged + (whole * d + i) * job.tokens + job.from;
            int64_t stride = 1;
            if (selected < none && *selected == whole * d + i) {
                const int64_t at = selected++ - job.selected;
                values = job.z + at / kColumns * kSome * kColumns + at % kColumns;
                stride = kColumns;
            } else if (nothing(values, job.some)) {
                continue;
            }
            list_row(values, stride, job.some, int32_t(i), d + 1, lists, counts);
        }
        const float* matrix = job.bases + whole * job.panels() * d * kPanel;
        for (int64_t panel = 0; panel < job.panels(); ++panel, matrix += d * kPanel) {
            // Columns of the table that the panel has and that are wanted.
            const int64_t first = block * d + panel * kPanel;
            const int64_t end = first + kPanel < (block + 1) * d ? first + kPanel : (block + 1) * d;
            const int64_t from = first < job.start ? job.start : first;
            const int64_t to = end < job.stop ? end : job.stop;
            if (from >= to) continue;
            for (int64_t t = 0; t < job.some; ++t) {
                float sums[kPanel] = {};
                add_rows<kPanel>(matrix, lists + t * (d + 1), counts[t], sums);
                float* out = job.out + (table * job.tokens + job.from + t) * width;
                __builtin_memcpy(out + from - job.start, sums + from - first,
                                 size_t(to - from) * sizeof *out);
            }
        }
    }
    free(lists);
}

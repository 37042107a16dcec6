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

// Bit of each of eight values that is not zero.
LEXICO_INLINE unsigned present8(const float* values) {
#if LEXICO_WIDTH >= 8
    const __m256 zero = _mm256_setzero_ps();
    return unsigned(_mm256_movemask_ps(
        _mm256_cmp_ps(_mm256_loadu_ps(values), zero, _CMP_NEQ_UQ)));
#else
    unsigned bits = 0;
    for (int i = 0; i < 8; ++i) bits |= unsigned(values[i] != 0) << i;
    return bits;
#endif
}

// Each token's entry of a row of components, where it is not zero.
LEXICO_INLINE void list_row(const Synthesis& job, int64_t row, int32_t number, int64_t most,
                            Entry* lists, int32_t* counts) {
    for (int64_t first = 0; first < job.some; first += kBlockTokens) {
        const float* values = job.values(row, first);
        if (!values) continue;
        Entry* own = lists + first * most;
        int32_t* filled = counts + first;
        const int64_t n = job.some - first < kBlockTokens ? job.some - first : kBlockTokens;
        const auto take = [=](int64_t t) { own[t * most + filled[t]++] = {values[t], number}; };
        int64_t t = 0;
        for (; t + 8 <= n; t += 8)
            for (unsigned bits = present8(values + t); bits; bits &= bits - 1)
                take(t + __builtin_ctz(bits));
        for (; t < n; ++t)
            if (values[t] != 0) take(t);
    }
}

// A token's entries of a tile's rows as shorts, and what a unit of theirs is. Where one is no number,
// or too large for a sum of squares, the unit is no number.
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
            list_row(job, job.components + k, int32_t(k - first), kListed, lists, counts);
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

// What a thread needs of a table.
struct TableScratch {
    Entry* lists;  // [kSome, d] components of a block that Q does not make and that are not zero
    float* z;      // [kSome, d] those that Q makes
    float* made;   // [kSome, width] what is made of them
    int32_t* rows; // [d] of those that Q makes in the basis
    int32_t counts[kSome];
    void* base;

    TableScratch(int64_t d, int64_t width) {
        base = malloc(size_t(kSome * d) * (sizeof(Entry) + sizeof(float)) +
                      size_t(kSome * width + d) * sizeof(float));
        lists = static_cast<Entry*>(base);
        z = reinterpret_cast<float*>(lists + kSome * d);
        made = z + kSome * d;
        rows = reinterpret_cast<int32_t*>(made + kSome * width);
    }
    ~TableScratch() { free(base); }
    TableScratch(const TableScratch&) = delete;
};

// 64 columns of a token's product with a panel of the basis.
LEXICO_INLINE void add_block(const float* panel, const TableScratch& scratch, int64_t d, int64_t t,
                             int64_t made, float* sums) {
    F16 sum[4] = {};
    const auto add = [panel, &sum](float value, int32_t row) {
        const F16 c = all(value);
        for (int i = 0; i < 4; ++i)
            sum[i] = add_product(sum[i], c, load(panel + row * kPanel + 16 * i));
    };
    const float* z = scratch.z + t * d;
    for (int64_t k = 0; k < made; ++k) add(z[k], scratch.rows[k]);
    const Entry* entries = scratch.lists + t * d;
    for (int32_t k = 0; k < scratch.counts[t]; ++k) add(entries[k].value, entries[k].row);
    for (int i = 0; i < 4; ++i) store(sums + 16 * i, sum[i]);
}

// Sorts the components of a block out; how many of them Q makes.
LEXICO_INLINE int64_t take_block(const Synthesis& job, int64_t whole, TableScratch& scratch) {
    const int64_t d = job.d, first = job.selected_before(whole * d);
    __builtin_memset(scratch.counts, 0, sizeof scratch.counts);
    int64_t made = 0;
    for (int64_t i = 0; i < d; ++i) {
        if (first + made < job.second && job.selected[first + made] == whole * d + i) {
            scratch.rows[made++] = int32_t(i);
            continue;
        }
        list_row(job, whole * d + i, int32_t(i), d, scratch.lists, scratch.counts);
    }
    for (int64_t from = 0; from < made;) { // panel by panel of Q
        const int64_t at = first + from, left = kColumns - at % kColumns;
        const int64_t n = made - from < left ? made - from : left;
        const float* z = job.z + at / kColumns * kSome * kColumns + at % kColumns;
        for (int64_t t = 0; t < job.some; ++t)
            __builtin_memcpy(scratch.z + t * d + from, z + t * kColumns, size_t(n) * sizeof *z);
        from += n;
    }
    return made;
}

// Columns of a block of a table that are wanted, of all tokens, to their places in scratch.made.
LEXICO_INLINE void multiply_block(const Synthesis& job, int64_t table, int64_t block,
                                  TableScratch& scratch) {
    const int64_t d = job.d, width = job.stop - job.start;
    const int64_t whole = (job.first_table + table) * job.blocks + block;
    const int64_t made = take_block(job, whole, scratch);
    const float* matrix = job.bases + whole * job.panels() * d * kPanel;
    for (int64_t panel = 0; panel < job.panels(); ++panel, matrix += d * kPanel) {
        // Columns of the table that the panel has and that are wanted.
        const int64_t first = block * d + panel * kPanel;
        const int64_t end = first + kPanel < (block + 1) * d ? first + kPanel : (block + 1) * d;
        const int64_t from = first < job.start ? job.start : first;
        const int64_t to = end < job.stop ? end : job.stop;
        if (from >= to) continue;
        const float* ahead = panel + 1 < job.panels() ? matrix + d * kPanel : nullptr;
        for (int64_t t = 0; t < job.some; ++t) {
            float sums[kPanel];
            for (int64_t k = t; ahead && k < made; k += job.some) // what the next panel needs
                for (int64_t line = 0; line < kPanel; line += 16)
                    __builtin_prefetch(ahead + scratch.rows[k] * kPanel + line);
            add_block(matrix, scratch, d, t, made, sums);
            __builtin_memcpy(scratch.made + t * width + from - job.start, sums + from - first,
                             size_t(to - from) * sizeof *sums);
        }
    }
}

void multiply_bases(Synthesis& job) {
    const int64_t width = job.stop - job.start, first = job.first_block();
    TableScratch scratch(job.d, width);
    if (!scratch.base) {
        job.status.store(kNoMemory);
        return;
    }
    for (int64_t table; (table = job.next.fetch_add(1)) < job.tables;) {
        for (int64_t block = first; block < first + job.wanted_blocks(); ++block)
            multiply_block(job, table, block, scratch);
        if (job.out) {
            float* out = job.out + (table * job.tokens + job.from) * width;
            __builtin_memcpy(out, scratch.made, size_t(job.some * width) * sizeof *out);
        } else {
            for (int64_t t = 0; t < job.some; ++t)
                lay_row(*job.laying, table, job.from + t, scratch.made + t * width);
        }
    }
}

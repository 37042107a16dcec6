// Products of decoded components with a transform's matrices, of what is not zero alone.
//
// Most levels of a page are zero. Each token lists its others, and adds up their rows of the
// matrix, 64 columns at a time in registers. Matrices lie in panels of those columns. Q, large and
// orthogonal, is read once for a few tokens and lies there as pairs of bfloat16: a register of
// pairs is two of float32 after a shift and a mask.

struct Pairs {
    uint32_t two;
};
constexpr int64_t kPaired = kPanel / 2;

LEXICO_INLINE void load64(const Pairs* row, F16 (&out)[4]) {
    for (int half = 0; half < 2; ++half)
        for (int i = 0; i < R; ++i) {
            const I two = *reinterpret_cast<const IU*>(row + 16 * half + i * W);
            out[2 * half].v[i] = (V)(two << 16);
            out[2 * half + 1].v[i] = (V)(two & int32_t(0xffff0000));
        }
}
LEXICO_INLINE void load64(const float* row, F16 (&out)[4]) {
    for (int i = 0; i < 4; ++i) out[i] = load(row + 16 * i);
}

// Rows of a panel, `stride` apart, times their values, onto 64 sums.
template <int64_t stride, typename T>
LEXICO_INLINE void add_rows(const T* panel, const Entry* entries, int32_t count, float* sums) {
    F16 sum[4];
    load64(sums, sum);
    for (int32_t k = 0; k < count; ++k) {
        const F16 c = all(entries[k].value);
        F16 row[4];
        load64(panel + int64_t(entries[k].row) * stride, row);
        for (int i = 0; i < 4; ++i) sum[i] = add_product(sum[i], c, row[i]);
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

void list_second(Synthesis& job) {
    for (int64_t chunk; (chunk = job.next.fetch_add(1)) < job.chunks();) {
        Entry* lists = job.lists + chunk * kSome * kListed;
        int32_t* counts = job.counts + chunk * kSome;
        const int64_t first = chunk * kListed;
        const int64_t end = first + kListed < job.kept ? first + kListed : job.kept;
        __builtin_memset(counts, 0, size_t(kSome) * sizeof *counts);
        for (int64_t k = first; k < end; ++k) {
            const float* row = job.arranged + (job.components + k) * job.tokens + job.from;
            list_row(row, 1, job.some, int32_t(k - first), kListed, lists, counts);
        }
    }
}

void multiply_cross(Synthesis& job) {
    for (int64_t item; (item = job.next.fetch_add(1)) < job.last_panel - job.first_panel;) {
        const int64_t panel = job.first_panel + item;
        const Pairs* matrix =
            reinterpret_cast<const Pairs*>(job.cross) + panel * job.second * kPaired;
        float* z = job.z + panel * kSome * kPanel;
        __builtin_memset(z, 0, size_t(job.some * kPanel) * sizeof *z);
        for (int64_t chunk = 0; chunk < job.chunks(); ++chunk) {
            const Pairs* rows = matrix + chunk * kListed * kPaired;
            const Entry* lists = job.lists + chunk * kSome * kListed;
            const int32_t* counts = job.counts + chunk * kSome;
            for (int64_t t = 0; t < job.some; ++t)
                if (counts[t])
                    add_rows<kPaired>(rows, lists + t * kListed, counts[t], z + t * kPanel);
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
                values = job.z + at / kPanel * kSome * kPanel + at % kPanel;
                stride = kPanel;
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

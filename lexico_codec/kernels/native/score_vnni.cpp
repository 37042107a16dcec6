// Scoring on AVX-512 VNNI: vpdpbusd wants unsigned times signed, so residuals are stored as q + 128
// and each atom's sum starts at -128 * sum(codes).
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>

#include "layout.h"
#include "lexico.h"
#include "synthesis.h"

#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")
#define LEXICO_WIDTH 16
#define LEXICO_GROUPS 2

namespace lexico::vnni {

#include "lanes.inl"

#include "group.inl"

#include "quantised.inl"

struct Scorer {
    static void enter() {}
    static void leave() {}
    static void prepare(Group& g, const Dictionary& dict) { quantise(g, dict, 0x80808080u); }

    template <int N> // groups
    static void scan(const PackedTable& t, int64_t m, Group** live) {
        const int64_t quads = (m + 3) / 4;
        __m512 ratio[N], lower[N];
        for (int i = 0; i < N; ++i)
            ratio[i] = _mm512_loadu_ps(live[i]->ratio), lower[i] = _mm512_setzero_ps();
        for (int64_t j = 0; j < t.padded(); j += 8) {
            const int8_t* atoms = t.codes + j * t.stride;
            __m512i sum[N][8];
            for (int i = 0; i < N; ++i)
                for (int a = 0; a < 8; ++a) sum[i][a] = _mm512_set1_epi32(t.shift[j + a]);
            for (int64_t k = 0; k < quads; ++k) {
                __m512i r[N];
                for (int i = 0; i < N; ++i) r[i] = _mm512_load_si512(live[i]->codes + k * 64);
                for (int a = 0; a < 8; ++a) {
                    int32_t four;
                    __builtin_memcpy(&four, atoms + a * t.stride + k * 4, 4);
                    const __m512i d = _mm512_set1_epi32(four);
                    for (int i = 0; i < N; ++i) sum[i][a] = _mm512_dpbusd_epi32(sum[i][a], r[i], d);
                }
            }
            for (int i = 0; i < N; ++i)
                for (int b = 0; b < 2; ++b)
                    lower[i] = bound(sum[i][4 * b], sum[i][4 * b + 1], sum[i][4 * b + 2],
                                     sum[i][4 * b + 3], t, j / 4 + b, ratio[i], lower[i],
                                     live[i]->upper);
        }
        for (int i = 0; i < N; ++i) _mm512_storeu_ps(live[i]->lower, lower[i]);
    }

    static void score(const Dictionary& dict, Group** live, int n) {
        int i = 0;
        for (; i + 2 <= n; i += 2) scan<2>(dict.packed, dict.m, live + i);
        if (i < n) scan<1>(dict.packed, dict.m, live + i);
    }
};

#include "pursue.inl"

#include "reconstruct.inl"

#include "layout.inl"
#include "synthesis.inl"

} // namespace lexico::vnni
#endif

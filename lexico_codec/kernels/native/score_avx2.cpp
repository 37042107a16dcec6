// Scoring on AVX2 and FMA, in float32: int8 products of AVX2 alone saturate, and mending that costs
// as many instructions as the float form has.
#if defined(__x86_64__)
#include <immintrin.h>
#include <stdlib.h>

#include "layout.h"
#include "lexico.h"
#include "synthesis.h"

#pragma GCC target("avx2,fma,f16c")
#define LEXICO_WIDTH 8
#define LEXICO_GROUPS 2

namespace lexico::avx2 {

#include "lanes.inl"

#include "group.inl"

#include "single.inl"

#include "pursue.inl"

#include "reconstruct.inl"

#include "layout.inl"
#include "synthesis.inl"

} // namespace lexico::avx2
#endif

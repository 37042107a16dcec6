// Scoring on whatever the compiler's baseline has (SSE2, NEON), in float32.
#include <stdlib.h>

#if defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "layout.h"
#include "lexico.h"
#include "synthesis.h"

#define LEXICO_WIDTH 4
#define LEXICO_GROUPS 2

namespace lexico::generic {

#include "lanes.inl"

#include "group.inl"

#include "single.inl"

#include "pursue.inl"

#include "reconstruct.inl"

#include "layout.inl"
#include "synthesis.inl"

} // namespace lexico::generic

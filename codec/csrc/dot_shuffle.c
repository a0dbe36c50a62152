/* Byte-shuffle tiers (AVX2, SSSE3, NEON): a product is the sum of two 16-entry look-ups, one per nibble.
 *
 * The technique is that of Plank, Greenan and Miller, "Screaming Fast Galois Field Arithmetic Using Intel SIMD
 * Instructions" (FAST 2013). One body serves the three instruction sets; each names its vector operations first.
 */

#include "kernel.h"

#include <string.h>

#ifdef KERNEL_X86
#include <immintrin.h>

#define BODY(name) name##_avx2
#define TARGET __attribute__((target("avx2")))
#define VECTOR __m256i
#define LOAD(address) _mm256_loadu_si256((const __m256i *)(address))
#define STORE(address, value) _mm256_storeu_si256((__m256i *)(address), value)
#define TABLE(address) _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)(address)))
#define LOW_NIBBLES(value) _mm256_and_si256(value, _mm256_set1_epi8(15))
#define HIGH_NIBBLES(value) LOW_NIBBLES(_mm256_srli_epi64(value, 4))
#define LOOK_UP(table, index) _mm256_shuffle_epi8(table, index)
#define XOR(a, b) _mm256_xor_si256(a, b)
#define ZERO() _mm256_setzero_si256()
#include "dot_shuffle_body.h"

#define BODY(name) name##_ssse3
#define TARGET __attribute__((target("ssse3")))
#define VECTOR __m128i
#define LOAD(address) _mm_loadu_si128((const __m128i *)(address))
#define STORE(address, value) _mm_storeu_si128((__m128i *)(address), value)
#define TABLE(address) _mm_loadu_si128((const __m128i *)(address))
#define LOW_NIBBLES(value) _mm_and_si128(value, _mm_set1_epi8(15))
#define HIGH_NIBBLES(value) LOW_NIBBLES(_mm_srli_epi64(value, 4))
#define LOOK_UP(table, index) _mm_shuffle_epi8(table, index)
#define XOR(a, b) _mm_xor_si128(a, b)
#define ZERO() _mm_setzero_si128()
#include "dot_shuffle_body.h"
#endif /* KERNEL_X86 */

#ifdef KERNEL_NEON
#include <arm_neon.h>

#define BODY(name) name##_neon
#define TARGET
#define VECTOR uint8x16_t
#define LOAD(address) vld1q_u8(address)
#define STORE(address, value) vst1q_u8(address, value)
#define TABLE(address) vld1q_u8(address)
#define LOW_NIBBLES(value) vandq_u8(value, vdupq_n_u8(15))
#define HIGH_NIBBLES(value) vshrq_n_u8(value, 4)
#define LOOK_UP(table, index) vqtbl1q_u8(table, index)
#define XOR(a, b) veorq_u8(a, b)
#define ZERO() vdupq_n_u8(0)
#include "dot_shuffle_body.h"
#endif /* KERNEL_NEON */

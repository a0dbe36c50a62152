/* CRC32C (Castagnoli; RFC 3720, section 12.1), reflected, polynomial 0x1EDC6F41.
 *
 * Constants are derived here rather than pasted: shift_constant(n) is x^n mod P. The folding scheme is the one of
 * Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009).
 */

#include "kernel.h"

#include <string.h>

#define POLYNOMIAL_REFLECTED 0x82F63B78u
#define SLICES 8

static uint32_t slice[SLICES][256];

uint32_t crc32c_table(uint32_t state, const uint8_t *data, size_t size)
{
    for (; size >= SLICES; data += SLICES, size -= SLICES) {
        uint32_t next = 0;
        for (unsigned i = 0; i < 4; i++)
            next ^= slice[7 - i][(uint8_t)(state >> 8 * i) ^ data[i]] ^ slice[3 - i][data[i + 4]];
        state = next;
    }
    for (; size > 0; data++, size--)
        state = state >> 8 ^ slice[0][(uint8_t)state ^ *data];
    return state;
}

static void slices_init(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (unsigned bit = 0; bit < 8; bit++)
            value = value >> 1 ^ (value & 1 ? POLYNOMIAL_REFLECTED : 0);
        slice[0][byte] = value;
    }
    for (unsigned row = 1; row < SLICES; row++)
        for (unsigned byte = 0; byte < 256; byte++)
            slice[row][byte] = slice[row - 1][byte] >> 8 ^ slice[0][(uint8_t)slice[row - 1][byte]];
}

#ifdef KERNEL_X86

#include <immintrin.h>

#define TARGET_SSE42 __attribute__((target("sse4.2,pclmul")))
#define TARGET_AVX512 __attribute__((target("sse4.2,pclmul,vpclmulqdq,avx512f,avx512bw,avx512vl,avx512dq")))

/* Three independent streams hide the three-cycle latency of the crc32 instruction. */
#define LANE_LONG 1024
#define LANE_SHORT 128

typedef struct {
    uint64_t one_lane, two_lanes;   /* shift a register over one or two lanes of zero bytes */
} lane_shift;

static lane_shift long_shift, short_shift;

/* Multipliers that move 128 bits forward by the given distance: the earlier half, then the later half. */
typedef struct {
    uint64_t low, high;
} fold;

static fold fold_2048, fold_512;
static fold fold_to_last_lane[4];   /* one per 128-bit lane of a register; the last stays where it is */

/* x^n mod P, reflected, times two: the carry-less product of reflected operands comes out one bit low. */
static uint64_t shift_constant(unsigned n)
{
    uint32_t value = 0x80000000u;
    while (n-- > 0)
        value = value >> 1 ^ (value & 1 ? POLYNOMIAL_REFLECTED : 0);
    return (uint64_t)value << 1;
}

/* crc32_u64 of the product multiplies by a further x^32; the product of 32-bit operands sits 32 bits low. */
static lane_shift lane_shift_for(unsigned lane_size)
{
    return (lane_shift){shift_constant(8 * lane_size - 32), shift_constant(16 * lane_size - 32)};
}

static fold fold_for(unsigned distance)
{
    return (fold){shift_constant(distance + 32), shift_constant(distance - 32)};
}

static void x86_init(void)
{
    long_shift = lane_shift_for(LANE_LONG);
    short_shift = lane_shift_for(LANE_SHORT);
    fold_2048 = fold_for(2048);
    fold_512 = fold_for(512);
    for (unsigned lane = 0; lane < 3; lane++)
        fold_to_last_lane[lane] = fold_for(128 * (3 - lane));
}

ALWAYS_INLINE uint64_t load64(const uint8_t *data)
{
    uint64_t value;
    memcpy(&value, data, sizeof value);
    return value;
}

TARGET_SSE42 static uint64_t shifted(uint64_t state, uint64_t constant)
{
    __m128i product = _mm_clmulepi64_si128(_mm_cvtsi64_si128((int64_t)state), _mm_cvtsi64_si128((int64_t)constant), 0);
    return _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(product));
}

TARGET_SSE42 static uint64_t three_lanes(uint64_t first, const uint8_t *data, size_t lane_size,
                                         const lane_shift *shift)
{
    uint64_t second = 0, third = 0;
    for (size_t i = 0; i < lane_size; i += 8) {
        first = _mm_crc32_u64(first, load64(data + i));
        second = _mm_crc32_u64(second, load64(data + lane_size + i));
        third = _mm_crc32_u64(third, load64(data + 2 * lane_size + i));
    }
    return shifted(first, shift->two_lanes) ^ shifted(second, shift->one_lane) ^ third;
}

TARGET_SSE42 uint32_t crc32c_sse42(uint32_t initial, const uint8_t *data, size_t size)
{
    uint64_t state = initial;
    for (; size >= 3 * LANE_LONG; data += 3 * LANE_LONG, size -= 3 * LANE_LONG)
        state = three_lanes(state, data, LANE_LONG, &long_shift);
    for (; size >= 3 * LANE_SHORT; data += 3 * LANE_SHORT, size -= 3 * LANE_SHORT)
        state = three_lanes(state, data, LANE_SHORT, &short_shift);
    for (; size >= 8; data += 8, size -= 8)
        state = _mm_crc32_u64(state, load64(data));
    for (; size > 0; data++, size--)
        state = _mm_crc32_u8((uint32_t)state, *data);
    return (uint32_t)state;
}

TARGET_AVX512 ALWAYS_INLINE __m512i folded(__m512i value, __m512i constants, __m512i next)
{
    __m512i low = _mm512_clmulepi64_epi128(value, constants, 0x00);
    __m512i high = _mm512_clmulepi64_epi128(value, constants, 0x11);
    return _mm512_ternarylogic_epi64(low, high, next, 0x96);   /* three-way xor */
}

TARGET_AVX512 ALWAYS_INLINE __m512i broadcast(const fold *constants)
{
    return _mm512_broadcast_i64x2(_mm_loadu_si128((const __m128i *)constants));
}

/* Four 128-bit lanes to one: each is moved to the place of the last. */
TARGET_AVX512 ALWAYS_INLINE __m128i lanes_joined(__m512i value)
{
    __m512i moved = folded(value, _mm512_loadu_si512(fold_to_last_lane), _mm512_maskz_mov_epi64(0xC0, value));
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(moved), _mm512_extracti64x4_epi64(moved, 1));
    return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

TARGET_AVX512 uint32_t crc32c_avx512(uint32_t initial, const uint8_t *data, size_t size)
{
    if (size < 256)
        return crc32c_sse42(initial, data, size);
    __m512i a = _mm512_xor_si512(_mm512_loadu_si512(data), _mm512_zextsi128_si512(_mm_cvtsi32_si128((int)initial)));
    __m512i b = _mm512_loadu_si512(data + 64);
    __m512i c = _mm512_loadu_si512(data + 128);
    __m512i d = _mm512_loadu_si512(data + 192);
    __m512i constants = broadcast(&fold_2048);
    for (data += 256, size -= 256; size >= 256; data += 256, size -= 256) {
        a = folded(a, constants, _mm512_loadu_si512(data));
        b = folded(b, constants, _mm512_loadu_si512(data + 64));
        c = folded(c, constants, _mm512_loadu_si512(data + 128));
        d = folded(d, constants, _mm512_loadu_si512(data + 192));
    }
    constants = broadcast(&fold_512);
    d = folded(folded(folded(a, constants, b), constants, c), constants, d);
    for (; size >= 64; data += 64, size -= 64)
        d = folded(d, constants, _mm512_loadu_si512(data));
    __m128i rest = lanes_joined(d);
    uint64_t state = _mm_crc32_u64(0, (uint64_t)_mm_cvtsi128_si64(rest));
    state = _mm_crc32_u64(state, (uint64_t)_mm_extract_epi64(rest, 1));
    return crc32c_sse42((uint32_t)state, data, size);
}

#endif /* KERNEL_X86 */

#ifdef KERNEL_NEON

#include <arm_acle.h>

__attribute__((target("+crc"))) uint32_t crc32c_armv8(uint32_t state, const uint8_t *data, size_t size)
{
    for (; size >= 8; data += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
        state = __crc32cd(state, word);
    }
    for (; size > 0; data++, size--)
        state = __crc32cb(state, *data);
    return state;
}

#endif /* KERNEL_NEON */

void crc32c_init(void)
{
    slices_init();
#ifdef KERNEL_X86
    x86_init();
#endif
}

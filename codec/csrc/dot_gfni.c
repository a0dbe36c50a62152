/* GFNI tiers: GF2P8AFFINEQB multiplies a vector of bytes by any 8x8 bit matrix, so by any constant of any GF(2^8). */

#include "kernel.h"

#ifdef KERNEL_X86

#include <immintrin.h>
#include <string.h>

#define TARGET_AVX512 __attribute__((target("gfni,avx512f,avx512bw,avx512vl")))
#define TARGET_AVX2 __attribute__((target("gfni,avx2")))

/* Byte 7 - i of the matrix selects the input bits whose sum is output bit i. */
void prepare_affine(uint8_t coefficient, uint8_t *entry)
{
    memset(entry, 0, 8);
    for (unsigned input_bit = 0; input_bit < 8; input_bit++) {
        uint8_t product = gf_product[coefficient][1u << input_bit];
        for (unsigned output_bit = 0; output_bit < 8; output_bit++)
            entry[7 - output_bit] |= (uint8_t)((product >> output_bit & 1) << input_bit);
    }
}

/* Targets are asked for this many bytes ahead of their stores: the processor's own prefetchers follow the loads but
 * are slow to claim lines for writing. A prefetch beyond the end of a buffer is harmless. */
#define WRITE_AHEAD 512

ALWAYS_INLINE int64_t matrix_at(const uint8_t *tables, size_t index)
{
    int64_t matrix;
    memcpy(&matrix, tables + 8 * index, sizeof matrix);
    return matrix;
}

/* 128 bytes of `rows` targets: the accumulators stay in registers, so every source byte is loaded once. */
TARGET_AVX512 ALWAYS_INLINE void step_avx512(const unsigned rows, size_t source_count, const uint8_t *tables,
                                             const uint8_t *const *sources, uint8_t *const *targets, size_t at)
{
    __m512i left[6], right[6];
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
        left[row] = right[row] = _mm512_setzero_si512();
    size_t j = 0;
    for (; j + 2 <= source_count; j += 2, tables += 16 * rows) {   /* in pairs: one ternary xor adds two products */
        __m512i a = _mm512_loadu_si512(sources[j] + at), b = _mm512_loadu_si512(sources[j] + at + 64);
        __m512i c = _mm512_loadu_si512(sources[j + 1] + at), d = _mm512_loadu_si512(sources[j + 1] + at + 64);
#pragma GCC unroll 6
        for (unsigned row = 0; row < rows; row++) {
            __m512i m = _mm512_set1_epi64(matrix_at(tables, row)), o = _mm512_set1_epi64(matrix_at(tables, rows + row));
            left[row] = _mm512_ternarylogic_epi64(left[row], _mm512_gf2p8affine_epi64_epi8(a, m, 0),
                                                  _mm512_gf2p8affine_epi64_epi8(c, o, 0), 0x96);
            right[row] = _mm512_ternarylogic_epi64(right[row], _mm512_gf2p8affine_epi64_epi8(b, m, 0),
                                                   _mm512_gf2p8affine_epi64_epi8(d, o, 0), 0x96);
        }
    }
    if (j < source_count) {
        __m512i a = _mm512_loadu_si512(sources[j] + at), b = _mm512_loadu_si512(sources[j] + at + 64);
#pragma GCC unroll 6
        for (unsigned row = 0; row < rows; row++) {
            __m512i m = _mm512_set1_epi64(matrix_at(tables, row));
            left[row] = _mm512_xor_si512(left[row], _mm512_gf2p8affine_epi64_epi8(a, m, 0));
            right[row] = _mm512_xor_si512(right[row], _mm512_gf2p8affine_epi64_epi8(b, m, 0));
        }
    }
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++) {
        __builtin_prefetch(targets[row] + at + WRITE_AHEAD, 1);
        __builtin_prefetch(targets[row] + at + WRITE_AHEAD + 64, 1);
        _mm512_storeu_si512(targets[row] + at, left[row]);
        _mm512_storeu_si512(targets[row] + at + 64, right[row]);
    }
}

/* At most 64 bytes, selected by `mask`: nothing outside the buffers is touched. */
TARGET_AVX512 ALWAYS_INLINE void tail_avx512(const unsigned rows, size_t source_count, const uint8_t *tables,
                                             const uint8_t *const *sources, uint8_t *const *targets, size_t at,
                                             __mmask64 mask)
{
    __m512i sum[6];
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
        sum[row] = _mm512_setzero_si512();
    for (size_t j = 0; j < source_count; j++, tables += 8 * rows) {
        __m512i source = _mm512_maskz_loadu_epi8(mask, sources[j] + at);
#pragma GCC unroll 6
        for (unsigned row = 0; row < rows; row++) {
            __m512i m = _mm512_set1_epi64(matrix_at(tables, row));
            sum[row] = _mm512_xor_si512(sum[row], _mm512_gf2p8affine_epi64_epi8(source, m, 0));
        }
    }
#pragma GCC unroll 6
    for (unsigned row = 0; row < rows; row++)
        _mm512_mask_storeu_epi8(targets[row] + at, mask, sum[row]);
}

TARGET_AVX512 ALWAYS_INLINE void rows_avx512(const unsigned rows, size_t source_count, const uint8_t *tables,
                                             const uint8_t *const *sources, uint8_t *const *targets, size_t at,
                                             size_t size)
{
    for (; size >= 128; at += 128, size -= 128)
        step_avx512(rows, source_count, tables, sources, targets, at);
    for (; size > 0; at += 64) {
        size_t part = size < 64 ? size : 64;
        tail_avx512(rows, source_count, tables, sources, targets, at, UINT64_MAX >> (64 - part));
        size -= part;
    }
}

TARGET_AVX512 void dot_gfni_avx512(unsigned rows, size_t source_count, const uint8_t *tables,
                                   const uint8_t *const *sources, uint8_t *const *targets, size_t begin, size_t size)
{
    switch (rows) {
    case 1: rows_avx512(1, source_count, tables, sources, targets, begin, size); break;
    case 2: rows_avx512(2, source_count, tables, sources, targets, begin, size); break;
    case 3: rows_avx512(3, source_count, tables, sources, targets, begin, size); break;
    case 4: rows_avx512(4, source_count, tables, sources, targets, begin, size); break;
    case 5: rows_avx512(5, source_count, tables, sources, targets, begin, size); break;
    default: rows_avx512(6, source_count, tables, sources, targets, begin, size); break;
    }
}

TARGET_AVX2 ALWAYS_INLINE void step_avx2(const unsigned rows, size_t source_count, const uint8_t *tables,
                                         const uint8_t *const *sources, uint8_t *const *targets, size_t at)
{
    __m256i left[4], right[4];
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++)
        left[row] = right[row] = _mm256_setzero_si256();
    for (size_t j = 0; j < source_count; j++, tables += 8 * rows) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(sources[j] + at));
        __m256i b = _mm256_loadu_si256((const __m256i *)(sources[j] + at + 32));
#pragma GCC unroll 4
        for (unsigned row = 0; row < rows; row++) {
            __m256i m = _mm256_set1_epi64x(matrix_at(tables, row));
            left[row] = _mm256_xor_si256(left[row], _mm256_gf2p8affine_epi64_epi8(a, m, 0));
            right[row] = _mm256_xor_si256(right[row], _mm256_gf2p8affine_epi64_epi8(b, m, 0));
        }
    }
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++) {
        _mm256_storeu_si256((__m256i *)(targets[row] + at), left[row]);
        _mm256_storeu_si256((__m256i *)(targets[row] + at + 32), right[row]);
    }
}

/* Fewer than 64 bytes: copied to a full step's worth of scratch space, one source at a time. */
TARGET_AVX2 ALWAYS_INLINE void tail_avx2(const unsigned rows, size_t source_count, const uint8_t *tables,
                                         const uint8_t *const *sources, uint8_t *const *targets, size_t at,
                                         size_t size)
{
    uint8_t scratch[64] = {0};
    __m256i left[4], right[4];
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++)
        left[row] = right[row] = _mm256_setzero_si256();
    for (size_t j = 0; j < source_count; j++, tables += 8 * rows) {
        memcpy(scratch, sources[j] + at, size);
        __m256i a = _mm256_loadu_si256((const __m256i *)scratch);
        __m256i b = _mm256_loadu_si256((const __m256i *)(scratch + 32));
#pragma GCC unroll 4
        for (unsigned row = 0; row < rows; row++) {
            __m256i m = _mm256_set1_epi64x(matrix_at(tables, row));
            left[row] = _mm256_xor_si256(left[row], _mm256_gf2p8affine_epi64_epi8(a, m, 0));
            right[row] = _mm256_xor_si256(right[row], _mm256_gf2p8affine_epi64_epi8(b, m, 0));
        }
    }
#pragma GCC unroll 4
    for (unsigned row = 0; row < rows; row++) {
        _mm256_storeu_si256((__m256i *)scratch, left[row]);
        _mm256_storeu_si256((__m256i *)(scratch + 32), right[row]);
        memcpy(targets[row] + at, scratch, size);
    }
}

TARGET_AVX2 ALWAYS_INLINE void rows_avx2(const unsigned rows, size_t source_count, const uint8_t *tables,
                                         const uint8_t *const *sources, uint8_t *const *targets, size_t at,
                                         size_t size)
{
    for (; size >= 64; at += 64, size -= 64)
        step_avx2(rows, source_count, tables, sources, targets, at);
    if (size > 0)
        tail_avx2(rows, source_count, tables, sources, targets, at, size);
}

TARGET_AVX2 void dot_gfni_avx2(unsigned rows, size_t source_count, const uint8_t *tables,
                               const uint8_t *const *sources, uint8_t *const *targets, size_t begin, size_t size)
{
    switch (rows) {
    case 1: rows_avx2(1, source_count, tables, sources, targets, begin, size); break;
    case 2: rows_avx2(2, source_count, tables, sources, targets, begin, size); break;
    case 3: rows_avx2(3, source_count, tables, sources, targets, begin, size); break;
    default: rows_avx2(4, source_count, tables, sources, targets, begin, size); break;
    }
}

#endif /* KERNEL_X86 */

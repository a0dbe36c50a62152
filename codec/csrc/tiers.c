/* Which instruction sets this CPU can run, found once at import. */

#include "kernel.h"

#include <string.h>

#ifdef KERNEL_NEON
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif

simd_tier tiers_found[TIERS_MAX];
size_t tier_count;

static void add(simd_tier found)
{
    tiers_found[tier_count++] = found;
}

#ifdef KERNEL_X86
static void find_x86(void)
{
    __builtin_cpu_init();
    int sse42 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul");
    int avx2 = __builtin_cpu_supports("avx2");
    int gfni = __builtin_cpu_supports("gfni");
    int avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    crc32c_update crc32c = sse42 ? crc32c_sse42 : crc32c_table;
    crc32c_update crc32c_wide = sse42 && __builtin_cpu_supports("vpclmulqdq") ? crc32c_avx512 : crc32c;

    if (gfni && avx512)
        add((simd_tier){"gfni-avx512", 6, 8, prepare_affine, dot_gfni_avx512, crc32c_wide, &hash_avx512});
    if (gfni && avx2)
        add((simd_tier){"gfni-avx2", 4, 8, prepare_affine, dot_gfni_avx2, crc32c, &hash_avx2});
    if (avx2)
        add((simd_tier){"avx2", 4, 32, prepare_nibbles, dot_avx2, crc32c, &hash_avx2});
    if (__builtin_cpu_supports("ssse3"))
        add((simd_tier){"ssse3", 4, 32, prepare_nibbles, dot_ssse3, crc32c, &hash_ssse3});
}
#endif

void tiers_init(void)
{
    tier_count = 0;
#ifdef KERNEL_X86
    find_x86();
#endif
#ifdef KERNEL_NEON
    int crc = (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
    add((simd_tier){"neon", 4, 32, prepare_nibbles, dot_neon, crc ? crc32c_armv8 : crc32c_table,
                     &hash_neon});
#endif
    add((simd_tier){"scalar", 4, 1, prepare_plain, dot_scalar, crc32c_table, &hash_scalar});
}

const simd_tier *tier_by_name(const char *name)
{
    for (size_t i = 0; i < tier_count; i++)
        if (strcmp(tiers_found[i].name, name) == 0)
            return &tiers_found[i];
    return NULL;
}

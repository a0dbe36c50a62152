/* Coffre's coding kernel: the parts that know nothing of Python.
 *
 * A shard is the value of a polynomial of degree < k at that shard's point of GF(2^8); docs/formats/coding.md
 * gives the mathematics. Every operation (encode, decode, repair) is therefore one linear transform from k
 * source shards to some target shards, and this file declares that transform.
 */
#ifndef COFFRE_KERNEL_H
#define COFFRE_KERNEL_H

#include <stddef.h>
#include <stdint.h>

#define SHARDS_MAX 256   /* points of the field */
#define TABLE_ALIGN 64   /* one cache line, one AVX-512 register */

#if defined(__GNUC__)
#define ALWAYS_INLINE static inline __attribute__((always_inline))
#else
#define ALWAYS_INLINE static inline
#endif

#if defined(__x86_64__) && defined(__GNUC__)
#define KERNEL_X86 1
#endif
#if defined(__aarch64__) && defined(__GNUC__) && !defined(__AARCH64EB__)
#define KERNEL_NEON 1
#endif

/* ---- galois.c ------------------------------------------------------------------------------------------- */

/* gf_product[a][b] is a * b in GF(2^8) modulo x^8 + x^4 + x^3 + x^2 + 1 (0x11D). */
extern uint8_t gf_product[256][256];

void gf_init(void);

/* Coefficients (targets x sources, row-major) that turn source shards into target shards. */
void gf_interpolation_matrix(const uint8_t *sources, size_t source_count, const uint8_t *targets,
                             size_t target_count, uint8_t *coefficients);

/* ---- crc32c.c ------------------------------------------------------------------------------------------- */

/* Advances the raw (not inverted) CRC32C register over `size` bytes. */
typedef uint32_t (*crc32c_update)(uint32_t state, const uint8_t *data, size_t size);

void crc32c_init(void);
uint32_t crc32c_table(uint32_t state, const uint8_t *data, size_t size);
#ifdef KERNEL_X86
uint32_t crc32c_sse42(uint32_t state, const uint8_t *data, size_t size);
uint32_t crc32c_avx512(uint32_t state, const uint8_t *data, size_t size);
#endif
#ifdef KERNEL_NEON
uint32_t crc32c_armv8(uint32_t state, const uint8_t *data, size_t size);
#endif

/* ---- blake3.c ------------------------------------------------------------------------------------------- */

#define HASH_BYTES 16         /* of BLAKE3's 32: enough against second preimages */
#define HASH_WORDS 8
#define HASH_CHUNK_BYTES 1024

/* What is common to the nodes of trees that are hashed together. */
typedef struct {
    size_t size;            /* bytes of each; at most HASH_CHUNK_BYTES */
    uint32_t first, last;   /* flags of the first and of the last block; a parent has one, which is both */
    uint32_t all;           /* flags of every block */
} node_shape;

/* One width of the hash: hashes up to `width` nodes at once. An output may be an input of the same call. */
typedef struct {
    size_t width;
    void (*nodes)(const uint8_t *const *inputs, const uint64_t *counters, size_t used, const node_shape *shape,
                  uint32_t *const *outputs);
} hash_lanes;

extern const hash_lanes hash_scalar;
#ifdef KERNEL_X86
extern const hash_lanes hash_avx512, hash_avx2, hash_ssse3;
#endif
#ifdef KERNEL_NEON
extern const hash_lanes hash_neon;
#endif

/* The hashes of some shards of one size, which grow together. */
typedef struct {
    const hash_lanes *lanes;
    size_t shard_count, size, chunks, chunks_done;
    uint32_t *values;   /* of each shard, the chaining values of its chunks, then of their parents */
} hashing;

/* 0, or -1 when memory is short. */
int hashing_init(hashing *self, const hash_lanes *lanes, size_t shard_count, size_t size);
/* Takes in whatever is complete before byte `end` of every shard. */
void hashing_advance(hashing *self, const uint8_t *const *shards, size_t end);
/* Takes in the rest and writes HASH_BYTES per shard. */
void hashing_end(hashing *self, const uint8_t *const *shards, uint8_t *hashes);
void hashing_free(hashing *self);

/* ---- tiers ---------------------------------------------------------------------------------------------- */

/* Bytes [begin, begin + size) of `rows` target shards from the same bytes of `source_count` source shards.
 * `tables` holds one prepared entry per coefficient: all rows of source 0, then all rows of source 1, ... */
typedef void (*dot_products)(unsigned rows, size_t source_count, const uint8_t *tables,
                             const uint8_t *const *sources, uint8_t *const *targets, size_t begin, size_t size);

typedef struct {
    const char *name;
    unsigned rows_max;   /* target shards computed per load of the sources, at most 6 */
    size_t entry_size;   /* bytes of a prepared coefficient */
    void (*prepare)(uint8_t coefficient, uint8_t *entry);
    dot_products dot;
    crc32c_update crc32c;
    const hash_lanes *hash;
} simd_tier;

#ifdef KERNEL_X86
void prepare_affine(uint8_t coefficient, uint8_t *entry);
void dot_gfni_avx512(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);
void dot_gfni_avx2(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);
void dot_avx2(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);
void dot_ssse3(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);
#endif
#ifdef KERNEL_NEON
void dot_neon(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);
#endif
void prepare_nibbles(uint8_t coefficient, uint8_t *entry);
void prepare_plain(uint8_t coefficient, uint8_t *entry);
void dot_scalar(unsigned, size_t, const uint8_t *, const uint8_t *const *, uint8_t *const *, size_t, size_t);

/* Fills `tiers_found`, fastest first, with what this CPU can run; the scalar tier is always last. */
#define TIERS_MAX 6
extern simd_tier tiers_found[TIERS_MAX];
extern size_t tier_count;
void tiers_init(void);
const simd_tier *tier_by_name(const char *name);

/* ---- transform.c ---------------------------------------------------------------------------------------- */

typedef struct {
    const simd_tier *tier;
    size_t source_count, target_count;
    uint8_t *coefficients;   /* target_count x source_count */
    uint8_t *tables;         /* prepared entries, TABLE_ALIGN aligned */
    void *tables_allocation;
} transform;

/* 0, or -1 when memory is short. The points are copied into the coefficients; the caller keeps both arrays. */
int transform_init(transform *self, const simd_tier *tier, const uint8_t *sources, size_t source_count,
                   const uint8_t *targets, size_t target_count);
void transform_free(transform *self);

/* Computes every target from the sources, `size` bytes each. When `crcs` is not NULL it receives the CRC32C of
 * every source and then of every target, and `hash`, which is of as many shards, takes all of them in; both while the
 * bytes are in cache. `shards` are the sources and then the targets again. */
void transform_apply(const transform *self, const uint8_t *const *shards, uint8_t *const *targets, size_t size,
                     uint32_t *crcs, hashing *hash);

#endif

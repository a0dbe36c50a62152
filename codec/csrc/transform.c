/* A prepared linear transform, applied in cache-sized blocks. */

#include "kernel.h"

#include <stdlib.h>
#include <string.h>

/* Bytes of all shards together that one block covers: half a first-level cache, so that they are still there when
 * their CRC is computed. Measured, docs/decisions/codec-kernel.md. */
#define BLOCK_TOTAL (24 * 1024)
#define BLOCK_MIN 1024
#define CACHE_LINE 64
#define HASH_STRIDE (16 * HASH_CHUNK_BYTES)   /* fills the widest registers, and stays in the second-level cache */
#define BLOCK_STEP 256   /* a whole number of the widest step of both loops */

/* Rows of the group that starts at `row`; groups are as even as possible. */
static unsigned group_rows(const transform *self, size_t row)
{
    size_t groups = (self->target_count + self->tier->rows_max - 1) / self->tier->rows_max;
    size_t even = (self->target_count + groups - 1) / groups;
    size_t left = self->target_count - row;
    return (unsigned)(left < even ? left : even);
}

static void prepare_tables(transform *self)
{
    size_t entry_size = self->tier->entry_size, sources = self->source_count;
    for (size_t row = 0; row < self->target_count;) {
        unsigned rows = group_rows(self, row);
        uint8_t *entry = self->tables + row * sources * entry_size;
        for (size_t j = 0; j < sources; j++)
            for (unsigned r = 0; r < rows; r++, entry += entry_size)
                self->tier->prepare(self->coefficients[(row + r) * sources + j], entry);
        row += rows;
    }
}

int transform_init(transform *self, const simd_tier *tier, const uint8_t *sources, size_t source_count,
                   const uint8_t *targets, size_t target_count)
{
    size_t count = source_count * target_count;
    *self = (transform){.tier = tier, .source_count = source_count, .target_count = target_count};
    self->coefficients = malloc(count + 1);
    self->tables_allocation = malloc(count * tier->entry_size + TABLE_ALIGN);
    if (self->coefficients == NULL || self->tables_allocation == NULL) {
        transform_free(self);
        return -1;
    }
    uintptr_t address = (uintptr_t)self->tables_allocation;
    self->tables = (uint8_t *)self->tables_allocation + (TABLE_ALIGN - address % TABLE_ALIGN) % TABLE_ALIGN;
    gf_interpolation_matrix(sources, source_count, targets, target_count, self->coefficients);
    prepare_tables(self);
    return 0;
}

void transform_free(transform *self)
{
    free(self->coefficients);
    free(self->tables_allocation);
    self->coefficients = NULL;
    self->tables_allocation = NULL;
}

static size_t block_size(const transform *self)
{
    size_t size = BLOCK_TOTAL / (self->source_count + self->target_count) / BLOCK_STEP * BLOCK_STEP;
    return size < BLOCK_MIN ? BLOCK_MIN : size;
}

static void apply_block(const transform *self, const uint8_t *const *sources, uint8_t *const *targets, size_t begin,
                        size_t size)
{
    for (size_t row = 0; row < self->target_count;) {
        unsigned rows = group_rows(self, row);
        self->tier->dot(rows, self->source_count, self->tables + row * self->source_count * self->tier->entry_size,
                        sources, targets + row, begin, size);
        row += rows;
    }
}

void transform_apply(const transform *self, const uint8_t *const *shards, uint8_t *const *targets, size_t size,
                     uint32_t *crcs, hashing *hash)
{
    size_t shard_count = self->source_count + self->target_count, block = block_size(self);
    if (crcs != NULL)
        for (size_t i = 0; i < shard_count; i++)
            crcs[i] = UINT32_MAX;
    /* The first block ends where the first target's cache line does, so that later stores straddle no lines. */
    size_t part, limit = block - (self->target_count > 0 ? (uintptr_t)targets[0] % CACHE_LINE : 0);
    size_t hashed = 0;
    for (size_t begin = 0; begin < size; begin += part, limit = block) {
        part = size - begin < limit ? size - begin : limit;
        apply_block(self, shards, targets, begin, part);
        for (size_t i = 0; crcs != NULL && i < shard_count; i++)
            crcs[i] = self->tier->crc32c(crcs[i], shards[i] + begin, part);
        if (hash != NULL && begin + part >= hashed + HASH_STRIDE) {
            hashing_advance(hash, shards, begin + part);
            hashed = begin + part;
        }
    }
    for (size_t i = 0; crcs != NULL && i < shard_count; i++)
        crcs[i] = ~crcs[i];
}
